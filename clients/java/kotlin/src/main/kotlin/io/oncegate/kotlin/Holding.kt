package io.oncegate.kotlin

import io.oncegate.CancelledException
import io.oncegate.Hold
import io.oncegate.LostException
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.isActive
import kotlinx.coroutines.job
import kotlinx.coroutines.runInterruptible
import kotlinx.coroutines.withContext

/**
 * Where the library's calls block. A call may wait in a queue for minutes, so it does not take a thread of
 * [Dispatchers.IO] from others. The limits are those of each view: [Dispatchers.IO] has more threads for its views.
 */
internal class BlockingCalls(parallelism: Int) {
    private val beginnings = Dispatchers.IO.limitedParallelism(parallelism, "oncegate-begin")

    /** Not those of the beginnings: a caller may wait in a queue for the very turn that is to end. */
    private val ends = Dispatchers.IO.limitedParallelism(parallelism, "oncegate-end")

    /** Begins a turn or lease. If the caller is cancelled meanwhile, it is not held. */
    suspend fun <H : Hold> begin(request: () -> H): H {
        var begun: H? = null
        try {
            return runInterruptible(beginnings) { request().also { begun = it } }
        } catch (e: Throwable) {
            // It was granted in the moment of the cancellation.
            begun?.let { end { it.close() } }
            if (e is CancelledException) currentCoroutineContext().ensureActive()
            throw e
        }
    }

    /** Ends a turn or lease, also for a caller that is cancelled. */
    suspend fun <R> end(call: () -> R): R = withContext(NonCancellable + ends) { call() }
}

private val calls = BlockingCalls(4096)

internal suspend fun <H : Hold> begin(request: () -> H): H = calls.begin(request)

internal suspend fun <R> end(call: () -> R): R = calls.end(call)

/** Ends what is held, if an end of another kind has thrown before. */
internal suspend fun closeIfHeld(held: Hold) {
    if (held.held()) end { held.close() }
}

/** Cancels the body of a turn or lease that is lost. */
private class LossCancellation : CancellationException("the turn or lease was lost; stop working")

/** What came of a body. */
internal sealed interface Body<out T> {
    class Returned<out T>(val value: T) : Body<T>

    class Failed(val problem: Throwable) : Body<Nothing>
}

/**
 * Runs a body until it and all that it has launched have ended, and cancels it if what it holds is lost. A body that
 * returns all the same has returned.
 */
internal suspend fun <T> runIn(held: Hold, body: suspend CoroutineScope.() -> T): Body<T> {
    var returned: Body.Returned<T>? = null
    val lost = held.lost()
    return try {
        coroutineScope {
            val job = coroutineContext.job
            lost.thenAccept { job.cancel(LossCancellation()) }
            Body.Returned(body()).also { returned = it }
        }
    } catch (e: Throwable) {
        returned?.takeIf { isByLoss(held, e) } ?: Body.Failed(e)
    } finally {
        lost.cancel(false) // a hold that outlives its body keeps nothing of it
    }
}

/** Whether a body has ended because its turn or lease was lost, and not because its caller was cancelled. */
internal suspend fun isByLoss(held: Hold, problem: Throwable): Boolean =
    currentCoroutineContext().isActive &&
        held.lostReason() != null &&
        (problem is CancellationException || problem is LostException)

/** What a body's problem comes out as: a loss, which has the problem as suppressed, or the problem itself. */
internal suspend fun problemOf(held: Hold, problem: Throwable): Throwable {
    if (!isByLoss(held, problem)) return problem
    return try {
        held.check()
        problem
    } catch (lost: LostException) {
        lost.apply { addSuppressed(problem) }
    }
}
