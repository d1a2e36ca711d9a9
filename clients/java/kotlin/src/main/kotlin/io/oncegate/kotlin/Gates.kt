package io.oncegate.kotlin

import io.oncegate.Delivery
import io.oncegate.DuplicateException
import io.oncegate.Gate
import io.oncegate.Lease
import io.oncegate.LeaseRequest
import io.oncegate.NotGrantedException
import io.oncegate.RejectException
import io.oncegate.Scope
import io.oncegate.Session
import io.oncegate.Turn
import io.oncegate.TurnRequest
import java.lang.reflect.Type
import kotlin.reflect.javaType
import kotlin.reflect.typeOf
import kotlin.time.Duration
import kotlin.time.toJavaDuration
import kotlinx.coroutines.CoroutineScope

/**
 * Runs a handler in the turn of an event and its conversation. What it returns is stored, and duplicates get it.
 *
 * The turn ends when the handler and all that it has launched have ended. If the turn is lost, they are cancelled, and
 * [io.oncegate.TurnLostException] is thrown. If the caller is cancelled, so are they, and the turn fails at once: the
 * next delivery gets the event. [RejectException] refuses the event for good; another exception fails the turn, and
 * comes out as it is. The caller's dispatcher is not blocked.
 *
 * Throws what [TurnRequest.begin] and [Turn.succeed] throw, except that what is not granted is returned.
 *
 * @param wait how long to queue while the conversation is busy
 * @param options the other options of the turn; its `waitFor` and `interruptOnLoss` are overridden
 */
public suspend fun <T> Gate.turn(
    delivery: Delivery,
    wait: Duration = Duration.ZERO,
    options: TurnRequest.() -> Unit = {},
    handler: suspend CoroutineScope.(Turn) -> T,
): Outcome<T> {
    val turn =
        try {
            beginTurn(delivery, wait, options)
        } catch (refusal: NotGrantedException) {
            return outcomeOf(refusal)
        }
    return handle(turn, handler)
}

/**
 * Runs a handler once for the event, and returns its stored result to duplicates. The conversation is ignored. Null if
 * nothing was stored, or if the handler rejected the event. Throws [NotGrantedException] while another run has the
 * event; otherwise as [turn]. The `waitFor` and `interruptOnLoss` of `options` are overridden.
 */
@OptIn(ExperimentalStdlibApi::class)
public suspend inline fun <reified T> Gate.once(
    delivery: Delivery,
    noinline options: TurnRequest.() -> Unit = {},
    noinline handler: suspend CoroutineScope.(Turn) -> T,
): T? = onceOf(typeOf<T>().javaType, delivery, options, handler)

@PublishedApi
internal suspend fun <T> Gate.onceOf(
    type: Type,
    delivery: Delivery,
    options: TurnRequest.() -> Unit,
    handler: suspend CoroutineScope.(Turn) -> T,
): T? {
    val alone = delivery.session("").scope(Scope.EVENT)
    val turn =
        try {
            beginTurn(alone, Duration.ZERO, options)
        } catch (duplicate: DuplicateException) {
            return duplicate.result(type)
        }
    return when (val outcome = handle(turn, handler)) {
        is Ran -> outcome.value
        else -> null
    }
}

private suspend fun Gate.beginTurn(delivery: Delivery, wait: Duration, options: TurnRequest.() -> Unit): Turn {
    // The thread that begins it is another one's afterwards: a loss must not interrupt it.
    val request = turn(delivery).apply(options).waitFor(wait.toJavaDuration()).interruptOnLoss(false)
    return begin { request.begin() }
}

private suspend fun <T> handle(turn: Turn, handler: suspend CoroutineScope.(Turn) -> T): Outcome<T> =
    try {
        when (val body = runIn(turn) { handler(turn) }) {
            is Body.Returned -> {
                end { turn.succeed(body.value.takeUnless { it is Unit }) }
                Ran(body.value)
            }
            is Body.Failed -> {
                val problem = body.problem
                if (problem is RejectException) {
                    end { turn.reject(problem.detail()) }
                    Rejected(problem.detail())
                } else {
                    end { turn.fail(problem) }
                    throw problemOf(turn, problem)
                }
            }
        }
    } finally {
        closeIfHeld(turn)
    }

/**
 * Runs a body while the gate holds a conversation alone. If the lease is lost, the body is cancelled, and
 * [io.oncegate.LeaseLostException] is thrown. The lease is released before this returns.
 *
 * Throws [io.oncegate.BusyException] if another holder has the conversation, and the wait is over.
 *
 * @param options the other options of the lease; its `waitFor` and `interruptOnLoss` are overridden
 */
public suspend fun <R> Gate.lease(
    session: Session,
    wait: Duration = Duration.ZERO,
    options: LeaseRequest.() -> Unit = {},
    body: suspend CoroutineScope.(Lease) -> R,
): R {
    val request = lease(session).apply(options).waitFor(wait.toJavaDuration()).interruptOnLoss(false)
    val lease = begin { request.acquire() }
    return try {
        when (val result = runIn(lease) { body(lease) }) {
            is Body.Returned -> {
                end { lease.release() }
                result.value
            }
            is Body.Failed -> {
                end { lease.close() }
                throw problemOf(lease, result.problem)
            }
        }
    } finally {
        closeIfHeld(lease)
    }
}
