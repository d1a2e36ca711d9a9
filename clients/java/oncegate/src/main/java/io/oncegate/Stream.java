package io.oncegate;

import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import org.jspecify.annotations.Nullable;

/**
 * A stream of messages. It is read by one thread, and cancelled by any.
 *
 * @param <Q> what is sent
 * @param <A> what is read
 */
final class Stream<Q, A> {
  private final Link link;
  private final Link.Access access;
  private final ClientCall<Q, A> call;
  private final LinkedBlockingQueue<Arrival<A>> arrived = new LinkedBlockingQueue<>();
  private final AtomicBoolean cancelled = new AtomicBoolean();
  private volatile boolean silent; // it was cancelled because nothing came in time

  /** A message, or the end. */
  private static final class Arrival<A> {
    final @Nullable A message;
    final Status status;
    final Metadata trailers;

    Arrival(@Nullable A message, Status status, Metadata trailers) {
      this.message = message;
      this.status = status;
      this.trailers = trailers;
    }
  }

  private Stream(Link link, Link.Access access, MethodDescriptor<Q, A> method) {
    this.link = link;
    this.access = access;
    call = access.connection.channel.newCall(method, CallOptions.DEFAULT);
  }

  /** Opens a stream, and sends the first message. */
  static <Q, A> Stream<Q, A> open(Link link, MethodDescriptor<Q, A> method, Q first) {
    Stream<Q, A> stream = new Stream<>(link, link.acquire(true), method);
    stream.start(first, method.getType().clientSendsOneMessage());
    return stream;
  }

  private void start(Q first, boolean only) {
    call.start(
        new ClientCall.Listener<A>() {
          @Override
          public void onMessage(A message) {
            arrived.add(new Arrival<>(message, Status.OK, new Metadata()));
            call.request(1);
          }

          @Override
          public void onClose(Status status, Metadata trailers) {
            link.release(access.connection);
            arrived.add(new Arrival<>(null, status, trailers));
          }
        },
        access.credentials.headers());
    call.request(1);
    // If the server has ended the call, the next read has its status.
    call.sendMessage(first);
    if (only) {
      call.halfClose();
    }
  }

  /** Sends a message. False if the stream has been cancelled. */
  boolean send(Q message) {
    try {
      call.sendMessage(message);
      return true;
    } catch (IllegalStateException e) {
      return false;
    }
  }

  /** The next message. If none comes in time, it cancels the stream and fails. */
  A read(long until) throws Failure, InterruptedException {
    Arrival<A> next = arrived.poll(Math.max(0, until - Clock.now()), TimeUnit.NANOSECONDS);
    if (next == null) {
      next = arrived.poll(Waiting.catchUp(until), TimeUnit.NANOSECONDS);
    }
    if (next == null) {
      silent = true;
      link.suspect(access.connection);
      cancel();
      throw Failure.unavailable("the server did not answer in time");
    }
    if (next.message != null) {
      return next.message;
    }
    arrived.add(next); // it stays ended
    if (silent) {
      throw Failure.unavailable("the server did not answer in time");
    }
    if (next.status.isOk()) {
      throw Failure.unavailable("the server ended the stream");
    }
    throw access.credentials.judge(Failure.read(next.status, next.trailers));
  }

  void cancel() {
    if (cancelled.compareAndSet(false, true)) {
      call.cancel("the stream is not needed any more", null);
    }
  }
}
