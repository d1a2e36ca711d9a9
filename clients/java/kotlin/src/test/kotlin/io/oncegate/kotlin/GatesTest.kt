package io.oncegate.kotlin

import io.oncegate.BusyException
import io.oncegate.Codec
import io.oncegate.Delivery
import io.oncegate.Gate
import io.oncegate.GateClosedException
import io.oncegate.Hooks
import io.oncegate.InProgressException
import io.oncegate.LeaseLostException
import io.oncegate.LostReason
import io.oncegate.RejectException
import io.oncegate.Session
import io.oncegate.Turn
import io.oncegate.TurnLostException
import io.oncegate.TurnRequest
import io.oncegate.Unavailability
import io.oncegate.testing.OncegateServer
import java.time.Duration as JavaDuration
import java.util.concurrent.CountDownLatch
import java.util.concurrent.Executors
import java.util.concurrent.Semaphore
import java.util.concurrent.TimeUnit
import kotlin.time.Duration
import kotlin.time.Duration.Companion.seconds
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.TimeoutCancellationException
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.future.await
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withContext
import kotlinx.coroutines.withTimeout
import kotlinx.coroutines.yield
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Assertions.fail
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.Timeout
import org.junit.jupiter.api.extension.RegisterExtension

/** Coroutines against the real server. */
@Timeout(value = 120, threadMode = Timeout.ThreadMode.SEPARATE_THREAD)
class GatesTest {
    @JvmField @RegisterExtension val server: OncegateServer = OncegateServer.create()

    private val queued = Channel<Int>(Channel.UNLIMITED)
    private val begun = Semaphore(0)

    data class Reply(val text: String)

    private val delivery = Delivery.of("T1", "E1").session("S1")
    private val session = Session.of("T1", "S1")

    /** All on one thread. The timeout of the class ends a call that blocks it; this one, a body that is suspended. */
    private fun test(body: suspend CoroutineScope.(Gate) -> Unit): Unit = runBlocking {
        val hooks =
            object : Hooks {
                override fun onQueued(position: Int) {
                    queued.trySend(position)
                }

                override fun onBegin(delivery: Delivery) = begun.release()
            }
        Gate.builder().server(server.address()).hooks(hooks).build().use { gate ->
            withTimeout(100.seconds) { body(gate) }
        }
    }

    private suspend inline fun <reified E : Throwable> assertThrows(call: () -> Unit): E {
        try {
            call()
        } catch (e: Throwable) {
            if (e is E) return e
            throw e
        }
        fail<Unit>("it did not throw ${E::class.simpleName}")
        throw AssertionError()
    }

    @Test
    fun `the quick start answers once`() = test { gate ->
        suspend fun quickStart(): String? =
            when (val outcome = gate.turn(delivery, wait = 20.seconds) { turn -> Reply("fence ${turn.fence() > 0}") }) {
                is Ran -> outcome.value.text
                is Duplicate -> "again: ${outcome.result<Reply>()?.text} ${outcome.outcome}"
                is Busy,
                is InProgress -> "later"
                is GaveUp,
                is Rejected,
                Dropped -> null
            }
        assertEquals("fence true", quickStart())
        assertEquals("again: fence true SUCCEEDED", quickStart())
    }

    @Test
    fun `an exception fails the turn and comes out as it is`() = test { gate ->
        val own = IllegalStateException("no disk")
        val thrown = assertThrows<IllegalStateException> { gate.turn(delivery) { throw own } }
        assertEquals("no disk", thrown.message)
        val outcome = gate.turn(delivery) { turn -> turn.attempt() }
        assertEquals(Ran(2), outcome)
    }

    @Test
    fun `a rejected event is not delivered again`() = test { gate ->
        assertEquals(Rejected("no topic"), gate.turn(delivery) { throw RejectException("no topic") })
        val again = gate.turn(delivery) { "ran" } as Duplicate
        assertEquals("REJECTED no topic null", "${again.outcome} ${again.detail} ${again.result<String>()}")
    }

    @Test
    fun `refusals are values`() = test { gate ->
        gate.turn(delivery, options = { maxAttempts(1) }) { turn ->
            val inProgress = gate.turn(delivery) { "ran" } as InProgress
            assertEquals(turn.attempt(), inProgress.attempt)
            assertTrue(inProgress.retryAfter > Duration.ZERO)
            val busy = gate.turn(Delivery.of("T1", "E2").session("S1")) { "ran" } as Busy
            assertEquals(inProgress.holder, busy.holder)
        }
        val other = Delivery.of("T1", "E3")
        assertThrows<IllegalStateException> { gate.turn(other, options = { maxAttempts(1) }) { error("no disk") } }
        val gaveUp = gate.turn(other, options = { maxAttempts(1) }) { "ran" } as GaveUp
        assertEquals(1, gaveUp.attempts)
        assertTrue("no disk" in gaveUp.detail)
        server.kill()
        val drop: TurnRequest.() -> Unit = { patience(JavaDuration.ZERO).onUnavailable(Unavailability.DROP) }
        assertEquals(Dropped, gate.turn(Delivery.of("T1", "E4"), options = drop) { "ran" })
    }

    @Test
    fun `a busy conversation queues without blocking the dispatcher`() = test { gate ->
        val order = mutableListOf<String>()
        val entered = CompletableDeferred<Unit>()
        val mayLeave = CompletableDeferred<Unit>()
        val first = launch {
            gate.turn(delivery) {
                entered.complete(Unit)
                mayLeave.await()
                order += "first"
            }
        }
        entered.await()
        val second = async {
            gate.turn(Delivery.of("T1", "E2").session("S1"), wait = 60.seconds) { order += "second" }
        }
        assertEquals(1, queued.receive()) // in the only thread, which would be blocked
        mayLeave.complete(Unit)
        first.join()
        assertTrue(second.await() is Ran)
        assertEquals(listOf("first", "second"), order)
    }

    @Test
    fun `many callers wait at once`() = test { gate ->
        val sessions = List(10) { "S$it" }
        val mayLeave = CompletableDeferred<Unit>()
        val entered = Channel<Unit>(Channel.UNLIMITED)
        for (each in sessions) launch {
            gate.turn(Delivery.of("T1", "first of $each").session(each)) {
                entered.send(Unit)
                mayLeave.await()
            }
        }
        repeat(sessions.size) { entered.receive() }
        val waiting = 100 // more than the threads of Dispatchers.IO
        val outcomes =
            List(waiting) { number ->
                val next = Delivery.of("T1", "E$number").session(sessions[number % sessions.size])
                async { gate.turn(next, wait = 60.seconds) { number } }
            }
        repeat(waiting) { queued.receive() }
        mayLeave.complete(Unit)
        assertEquals(List(waiting) { Ran(it) }, outcomes.map { it.await() })
    }

    @Test
    fun `a caller that is cancelled fails its turn at once`() = test { gate ->
        val entered = CompletableDeferred<Unit>()
        var ended: Throwable? = null
        val caller = launch {
            gate.turn(delivery) {
                launch {
                    try {
                        entered.complete(Unit)
                        awaitCancellation()
                    } catch (e: CancellationException) {
                        ended = e
                        throw e
                    }
                }
            }
        }
        entered.await()
        caller.cancelAndJoin()
        assertTrue(ended != null)
        assertEquals(listOf<Any>(), server.turns("T1"))
        assertEquals(Ran(2), gate.turn(delivery) { turn -> turn.attempt() })
    }

    @Test
    fun `a timeout of the caller is the caller's`() = test { gate ->
        assertThrows<TimeoutCancellationException> {
            withTimeout(1.seconds) { gate.turn(delivery) { awaitCancellation() } }
        }
        assertEquals(Ran(2), gate.turn(delivery) { turn -> turn.attempt() })
    }

    @Test
    fun `a caller that is cancelled while it waits leaves the queue`() = test { gate ->
        gate.turn(delivery) {
            val waiting = launch(start = CoroutineStart.UNDISPATCHED) {
                gate.turn(Delivery.of("T1", "E2").session("S1"), wait = 60.seconds) { fail<Unit>("it ran") }
            }
            queued.receive()
            assertEquals(1, server.waiting("T1"))
            waiting.cancelAndJoin()
            while (server.waiting("T1") > 0) yield() // the server reads the end of the stream
        }
        assertEquals(listOf<Any>(), server.turns("T1"))
    }

    @Test
    fun `a turn that is granted in the moment of the cancellation is not held`() = test { gate ->
        // The grant comes while the only thread is blocked: the caller is not resumed before the cancellation.
        val caller = launch { gate.turn(delivery) { fail<Unit>("it ran") } }
        yield()
        assertTrue(begun.tryAcquire(60, TimeUnit.SECONDS))
        caller.cancelAndJoin()
        assertEquals(listOf<Any>(), server.turns("T1"))
    }

    @Test
    fun `a loss cancels the body and all that it has launched`() = test { gate ->
        val entered = CompletableDeferred<Unit>()
        var ended = 0
        val lost = async {
            assertThrows<TurnLostException> {
                gate.turn(delivery) {
                    repeat(2) {
                        launch {
                            try {
                                awaitCancellation()
                            } finally {
                                ended++
                            }
                        }
                    }
                    yield()
                    entered.complete(Unit)
                }
            }
        }
        entered.await()
        server.lose(session)
        assertEquals(LostReason.LEASE_LOST, lost.await().reason())
        assertEquals(2, ended)
        assertTrue(coroutineContext[kotlinx.coroutines.Job]!!.isActive) // the caller itself is not cancelled
    }

    @Test
    fun `the value of a body that ignores its loss is not stored`() = test { gate ->
        val lost =
            assertThrows<TurnLostException> {
                gate.turn(delivery) { turn ->
                    server.lose(session)
                    withContext(NonCancellable) { turn.lost().await() }
                    "value"
                }
            }
        assertEquals("value", lost.value())
    }

    @Test
    fun `a body's own error is not masked by the loss`() = test { gate ->
        val thrown =
            assertThrows<IllegalStateException> {
                gate.turn(delivery) { turn ->
                    server.lose(session)
                    withContext(NonCancellable) { turn.lost().await() }
                    error("no disk")
                }
            }
        assertEquals("no disk", thrown.message)
    }

    @Test
    fun `what a cancelled body throws is suppressed`() = test { gate ->
        val entered = CompletableDeferred<Unit>()
        val lost = async {
            assertThrows<TurnLostException> {
                gate.turn(delivery) { turn ->
                    try {
                        entered.complete(Unit)
                        awaitCancellation()
                    } catch (_: CancellationException) {
                        turn.check()
                    }
                }
            }
        }
        entered.await()
        server.lose(session)
        assertEquals(listOf(TurnLostException::class), lost.await().suppressed.map { it::class })
    }

    @Test
    fun `an end does not wait for callers that begin`() = test {
        val calls = BlockingCalls(1)
        val begun = CompletableDeferred<Unit>()
        val mayBegin = CountDownLatch(1)
        val caller = async {
            assertThrows<IllegalStateException> {
                calls.begin<Turn> {
                    begun.complete(Unit)
                    mayBegin.await()
                    error("no turn")
                }
            }
        }
        begun.await()
        assertEquals("ended", calls.end { "ended" })
        mayBegin.countDown()
        caller.await()
    }

    /** Such as a class that is missing where it is needed first. */
    class BrokenCodec : Codec by Codec.json() {
        override fun encode(value: Any): Codec.Encoded = throw NoClassDefFoundError("Reply")
    }

    @Test
    fun `an error of the codec fails the turn`() = test { gate ->
        assertThrows<NoClassDefFoundError> { gate.turn(delivery, options = { codec(BrokenCodec()) }) { "value" } }
        assertEquals(Ran(2), gate.turn(delivery) { turn -> turn.attempt() })
    }

    class Mute : Exception() {
        override fun toString(): String = error("no text")
    }

    @Test
    fun `an error without a text ends the turn`() = test { gate ->
        assertThrows<Mute> { gate.turn(delivery) { throw Mute() } }
        assertTrue(gate.turn(delivery) { "ran" } is Ran)
    }

    @Test
    fun `a closed gate cancels the body`() = test { gate ->
        val entered = CompletableDeferred<Unit>()
        val lost = async {
            assertThrows<TurnLostException> {
                gate.turn(delivery) {
                    entered.complete(Unit)
                    awaitCancellation()
                }
            }
        }
        entered.await()
        gate.close()
        assertEquals(LostReason.CLOSED, lost.await().reason())
        assertThrows<GateClosedException> { gate.turn(delivery) { "ran" } }
    }

    @Test
    fun `the loss of an outer turn does not store the inner one's result`() = test { gate ->
        val inner = Delivery.of("T1", "E2")
        assertThrows<TurnLostException> {
            gate.turn(delivery) {
                gate.turn(inner) {
                    server.lose(session)
                    try {
                        awaitCancellation()
                    } catch (_: CancellationException) {
                        "value" // all the same
                    }
                }
            }
        }
        assertEquals("NOT_SEEN", gate.seen(inner).state())
    }

    @Test
    fun `once stores a result of its type`() = test { gate ->
        val replies = gate.once(delivery) { listOf(Reply("hello")) }
        val again = gate.once<List<Reply>>(delivery) { fail("it ran") }
        assertEquals(replies, again)
        assertEquals(listOf(Reply("hello")), again)
        assertNull(gate.once<Reply>(Delivery.of("T1", "E2")) { throw RejectException("no topic") })
        gate.turn(Delivery.of("T1", "E4")) {}
        assertNull((gate.turn(Delivery.of("T1", "E4")) {} as Duplicate).result<Any>()) // Unit is not stored
        gate.once(Delivery.of("T1", "E3").session("S1")) { turn ->
            assertEquals(0, turn.fence()) // without the conversation
            assertThrows<InProgressException> { gate.once(Delivery.of("T1", "E3")) { "ran" } }
            "done"
        }
    }

    @Test
    fun `a lease is held by its body`() = test { gate ->
        val value =
            gate.lease(session, wait = 1.seconds, options = { labels(mapOf("job" to "reindex")) }) { lease ->
                assertTrue(lease.held() && lease.fence() > 0)
                assertThrows<BusyException> { gate.lease(session) { fail<Unit>("it ran") } }
                "done"
            }
        assertEquals("done", value)
        assertThrows<IllegalStateException> { gate.lease(session) { error("no disk") } }
        gate.lease(session) { assertEquals(0, it.waiters()) } // it is free at once
    }

    @Test
    fun `the loss of a lease cancels its body`() = test { gate ->
        val lost =
            assertThrows<LeaseLostException> {
                gate.lease(session) {
                    server.lose(session)
                    awaitCancellation()
                }
            }
        assertEquals(LostReason.LEASE_LOST, lost.reason())
    }

    @Test
    fun `a caller that is cancelled releases its lease`() = test { gate ->
        val entered = CompletableDeferred<Unit>()
        val caller = launch {
            gate.lease(session) {
                entered.complete(Unit)
                awaitCancellation()
            }
        }
        entered.await()
        caller.cancelAndJoin()
        assertTrue(gate.lease(session) { it.held() }) // without a wait
    }

    @Test
    fun `a body stays with its own dispatcher`() = test { gate ->
        Executors.newSingleThreadExecutor { Thread(it, "own") }.asCoroutineDispatcher().use { own ->
            withContext(own) {
                val outcome = gate.turn(delivery) { Thread.currentThread().name }
                assertTrue((outcome as Ran).value.startsWith("own"))
                assertTrue(Thread.currentThread().name.startsWith("own"))
                assertFalse(Thread.currentThread().isInterrupted)
            }
        }
    }
}
