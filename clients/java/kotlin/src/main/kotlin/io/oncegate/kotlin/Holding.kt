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
 * Where the library's calls block. Each of them may wait in a queue for minutes, so they do not take the threads of
 * [Dispatchers.IO] from others; there are as many as turns begin or end at once.
 */
private val blocking = Dispatchers.IO.limitedParallelism(4096, "oncegate")

/** Begins a turn or lease. If the caller is cancelled meanwhile, it is not held. */
internal suspend fun <H : Hold> begin(request: () -> H): H {
    var begun: H? = null
    try {
        return runInterruptible(blocking) { request().also { begun = it } }
    } catch (e: Throwable) {
        // It was granted in the moment of the cancellation.
        begun?.let { end { it.close() } }
        if (e is CancelledException) currentCoroutineContext().ensureActive()
        throw e
    }
}

/** Ends a turn or lease, also for a caller that is cancelled. */
internal suspend fun <R> end(call: () -> R): R = withContext(NonCancellable + blocking) { call() }

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
        lost.cancel(false) // a gate that outlives many turns keeps nothing of them
    }
}

/** Whether a body has ended because its turn or lease was lost, and not because its caller was cancelled. */
internal suspend fun isByLoss(held: Hold, problem: Throwable): Boolean =
    currentCoroutineContext().isActive &&
        held.lostReason() != null &&
        (problem is CancellationException || problem is LostException)
