package io.oncegate.kotlin

import io.oncegate.BusyException
import io.oncegate.DroppedException
import io.oncegate.DuplicateException
import io.oncegate.GaveUpException
import io.oncegate.InProgressException
import io.oncegate.NotGrantedException
import kotlin.reflect.javaType
import kotlin.reflect.typeOf
import kotlin.time.Duration
import kotlin.time.toKotlinDuration

/** What came of a turn. */
public sealed interface Outcome<out T>

/** The handler ran, and returned a value. */
public data class Ran<out T>(public val value: T) : Outcome<T>

/** The handler ran, and rejected the event: it is never delivered again. */
public data class Rejected(public val detail: String) : Outcome<Nothing>

/** The event has been handled; acknowledge it. */
public class Duplicate internal constructor(@PublishedApi internal val refusal: DuplicateException) : Outcome<Nothing> {
    /** SUCCEEDED or REJECTED; null if the event was only marked. */
    public val outcome: String? get() = refusal.outcome()

    /** Why the event was rejected. */
    public val detail: String get() = refusal.detail()

    /**
     * What the run returned that handled the event; null if nothing was stored. Throws [io.oncegate.ResultException] if
     * it cannot be read as this type.
     */
    @OptIn(ExperimentalStdlibApi::class)
    public inline fun <reified T> result(): T? = refusal.result(typeOf<T>().javaType)
}

/** All attempts failed, and no run has handled the event; acknowledge it, and alert a person. */
public data class GaveUp(
    public val attempts: Int,
    /** How the latest attempt failed. */
    public val detail: String,
) : Outcome<Nothing>

/** Another run handles the event; refuse the delivery if its sender redelivers. */
public data class InProgress(
    public val holder: String,
    public val attempt: Int,
    /** When to ask again. */
    public val retryAfter: Duration,
) : Outcome<Nothing>

/** Another turn has the conversation, and the wait is over. */
public data class Busy(
    public val holder: String,
    /** How many callers wait for it. */
    public val queueLength: Int,
    /** When to ask again. */
    public val retryAfter: Duration,
) : Outcome<Nothing>

/** The server is unavailable, and [io.oncegate.Unavailability.DROP] is set. */
public data object Dropped : Outcome<Nothing>

internal fun outcomeOf(refusal: NotGrantedException): Outcome<Nothing> =
    when (refusal) {
        is DuplicateException -> Duplicate(refusal)
        is GaveUpException -> GaveUp(refusal.attempts(), refusal.detail())
        is InProgressException ->
            InProgress(refusal.holder(), refusal.attempt(), refusal.retryAfter().toKotlinDuration())
        is BusyException -> Busy(refusal.holder(), refusal.queueLength(), refusal.retryAfter().toKotlinDuration())
        is DroppedException -> Dropped
        else -> throw refusal
    }
