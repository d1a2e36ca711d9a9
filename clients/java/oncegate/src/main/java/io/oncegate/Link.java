package io.oncegate;

import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.ConnectivityState;
import io.grpc.EquivalentAddressGroup;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.NameResolver;
import io.grpc.NameResolverProvider;
import io.grpc.NameResolverRegistry;
import io.grpc.Status;
import io.grpc.StatusOr;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.ChannelOption;
import io.grpc.netty.shaded.io.netty.channel.EventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.MultiThreadIoEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.epoll.Epoll;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollIoHandler;
import io.grpc.netty.shaded.io.netty.channel.nio.NioIoHandler;
import io.grpc.netty.shaded.io.netty.channel.socket.nio.NioSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.unix.DomainSocketAddress;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.net.URI;
import java.net.URISyntaxException;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executor;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/** A gate's connections: streams apart from calls, which must not wait behind them. */
final class Link {
  /** The server allows 1,024 calls on a connection. */
  private static final int STREAMS_PER_CONNECTION = 900;

  static final long CALL_TIMEOUT = TimeUnit.SECONDS.toNanos(10);

  /** How long a connection may take to be made: name look-up, TCP and TLS. */
  static final long CONNECT_TIME = TimeUnit.SECONDS.toNanos(10);

  /** The least time for the last attempt of a call. */
  static final long SHORTEST = TimeUnit.MILLISECONDS.toNanos(100);

  private final Settings settings;
  private final Executor offload;
  private final System.Logger log;
  /** Stopped once all calls and streams are to end. */
  final Stop down = new Stop();


  // Guarded by this.
  private @Nullable EventLoopGroup loop;
  private @Nullable Certificates certificates; // of the connections that are open
  private final Set<Connection> all = new HashSet<>();
  private final List<Connection> streams = new ArrayList<>();
  private @Nullable Connection calls;
  /** Those that are not used any more, until they are closed. */
  private final Set<Connection> closing = new HashSet<>();

  private boolean closed;

  static {
    NameResolverRegistry.getDefaultRegistry().register(new ListResolver());
  }

  Link(Settings settings, Executor offload, System.Logger log) {
    this.settings = settings;
    this.offload = offload;
    this.log = log;
  }

  /** One channel of gRPC, with the number of its calls and streams. */
  static final class Connection {
    final ManagedChannel channel;
    long made = Clock.now();
    private int live;

    Connection(ManagedChannel channel) {
      this.channel = channel;
    }
  }

  /** What one more call or stream uses. */
  static final class Access {
    final Connection connection;
    final Credentials credentials;

    Access(Connection connection, Credentials credentials) {
      this.connection = connection;
      this.credentials = credentials;
    }
  }

  /** An answer, and when the call that got it was sent. */
  static final class Answer<A> {
    final A message;
    final long sent;

    Answer(A message, long sent) {
      this.message = message;
      this.sent = sent;
    }
  }

  private Connection connect(@Nullable Certificates found) {
    Address address = settings.address;
    boolean isUnix = address.socket != null;
    if (isUnix && !Epoll.isAvailable()) {
      throw new MisconfiguredException("server", "a Unix socket needs Linux on x86-64 or 64-bit ARM");
    }
    if (loop == null) {
      ThreadFactory threads = work -> Threads.make(work, "oncegate-network", log);
      loop =
          new MultiThreadIoEventLoopGroup(
              1,
              threads,
              isUnix ? EpollIoHandler.newFactory() : NioIoHandler.newFactory());
    }
    NettyChannelBuilder builder;
    if (address.socket != null) {
      builder =
          NettyChannelBuilder.forAddress(new DomainSocketAddress(address.socket))
              .channelType(EpollDomainSocketChannel.class, DomainSocketAddress.class)
              .overrideAuthority("localhost");
    } else {
      builder =
          NettyChannelBuilder.forTarget(address.target)
              .channelType(NioSocketChannel.class, InetSocketAddress.class)
              .withOption(ChannelOption.CONNECT_TIMEOUT_MILLIS, 2000);
    }
    builder
        .eventLoopGroup(loop)
        .directExecutor() // what a message calls only adds it to a queue
        .offloadExecutor(offload)
        .disableRetry() // this library repeats calls itself: it knows until when
        .defaultLoadBalancingPolicy("round_robin")
        .keepAliveTime(20, TimeUnit.SECONDS)
        .keepAliveTimeout(10, TimeUnit.SECONDS);
    if (found != null) {
      builder.sslContext(found.context);
      if (settings.serverName != null) {
        builder.overrideAuthority(settings.serverName);
      }
    } else {
      builder.usePlaintext();
    }
    if (settings.avoidsProxy) {
      builder.proxyDetector(target -> null);
    }
    return new Connection(builder.build());
  }

  /**
   * A connection for one more call or stream, which {@link #release} takes off: another one if the certificates have
   * changed.
   */
  Access acquire(boolean forStream) {
    Credentials credentials = settings.credentials(false);
    synchronized (this) {
      if (closed) {
        throw new GateClosedException();
      }
      if (credentials.certificates != certificates) {
        certificates = credentials.certificates;
        replace();
      }
      Connection connection = forStream ? roomyStream() : calls;
      if (connection == null) {
        connection = connect(credentials.certificates);
        all.add(connection);
        if (forStream) {
          streams.add(connection);
        } else {
          calls = connection;
        }
      }
      connection.live++;
      // gRPC waits from 1 s to 2 min before it connects again. This library pauses itself.
      connection.channel.resetConnectBackoff();
      return new Access(connection, credentials);
    }
  }

  private @Nullable Connection roomyStream() {
    for (Connection connection : streams) {
      if (connection.live < STREAMS_PER_CONNECTION) {
        return connection;
      }
    }
    return null;
  }

  /** Makes what comes use other connections. Those that are in use close after their last call. */
  private void replace() {
    streams.clear();
    calls = null;
    new ArrayList<>(all).forEach(this::closeUnused);
  }

  /**
   * Takes a connection that was silent out of use: it may be dead without a notice. One that is still being made stays
   * for a while: calls may have less time than that needs, and none would ever be made.
   */
  synchronized void suspect(Connection connection) {
    boolean isMade = connection.channel.getState(false) == ConnectivityState.READY;
    if (!isMade && Clock.now() - connection.made < CONNECT_TIME) {
      return;
    }
    if (calls == connection) {
      calls = null;
    }
    streams.remove(connection);
    closeUnused(connection);
  }

  /** A call or stream has ended. */
  synchronized void release(Connection connection) {
    connection.live--;
    closeIdle();
    closeUnused(connection);
  }

  /** Closes what a peak of streams has left, once there is plenty of room on another connection. */
  private void closeIdle() {
    for (Connection roomy : streams) {
      if (roomy.live <= STREAMS_PER_CONNECTION / 2) {
        List<Connection> idle = new ArrayList<>(streams);
        idle.removeIf(other -> other == roomy || other.live > 0);
        streams.removeAll(idle);
        idle.forEach(this::closeUnused);
        return;
      }
    }
  }

  /** How many connections there are, for tests. */
  synchronized int size() {
    return all.size();
  }

  private void closeUnused(Connection connection) {
    boolean used = connection == calls || connection.live > 0 || streams.contains(connection);
    if (!used && all.remove(connection)) {
      connection.channel.shutdown();
      closing.removeIf(other -> other.channel.isTerminated());
      closing.add(connection);
    }
  }

  /** Ends all calls and streams. No thread of a connection is left afterwards. */
  void close() {
    List<Connection> open;
    EventLoopGroup group;
    synchronized (this) {
      closed = true;
      open = new ArrayList<>(all);
      open.addAll(closing);
      group = loop;
    }
    down.stop();
    for (Connection connection : open) {
      connection.channel.shutdownNow();
    }
    for (Connection connection : open) {
      Waiting.uninterruptibly(
          nanos -> connection.channel.awaitTermination(nanos, TimeUnit.NANOSECONDS), CALL_TIMEOUT);
    }
    if (group != null) {
      var unused = group.shutdownGracefully(0, 1, TimeUnit.SECONDS);
      Waiting.uninterruptibly(nanos -> group.awaitTermination(nanos, TimeUnit.NANOSECONDS), CALL_TIMEOUT);
    }
  }

  boolean isDown() {
    return down.isStopped();
  }

  /** Makes one call. */
  private <Q, A> A call(MethodDescriptor<Q, A> method, Q request, long timeout, boolean interruptible, Stop stop)
      throws Failure, InterruptedException {
    Access access = acquire(false);
    ClientCall<Q, A> call =
        access.connection.channel.newCall(
            method, CallOptions.DEFAULT.withDeadlineAfter(timeout, TimeUnit.NANOSECONDS));
    Unary<A> answer = new Unary<>(() -> release(access.connection));
    call.start(answer, access.credentials.headers());
    call.request(2);
    call.sendMessage(request);
    call.halfClose();
    stop.add(call);
    try {
      // Its deadline, the end of its channel, or the stop ends the call.
      if (interruptible) {
        answer.closed.await();
      } else {
        Waiting.uninterruptibly(
            nanos -> {
              answer.closed.await();
              return true;
            },
            0);
      }
    } catch (InterruptedException e) {
      call.cancel("its caller was interrupted", e);
      throw e;
    } finally {
      stop.remove(call);
    }
    A message = answer.message;
    if (answer.status.isOk() && message != null) {
      return message;
    }
    if (isDown()) {
      throw new GateClosedException();
    }
    Status status = answer.status.isOk() ? Status.INTERNAL.withDescription("no answer") : answer.status;
    Failure failure = Failure.read(status, answer.trailers);
    if (failure.code == Status.Code.DEADLINE_EXCEEDED) {
      suspect(access.connection);
    }
    throw access.credentials.judge(failure);
  }

  private static final class Unary<A> extends ClientCall.Listener<A> {
    final CountDownLatch closed = new CountDownLatch(1);
    private final Runnable release;
    volatile @Nullable A message;
    volatile Status status = Status.UNKNOWN;
    volatile Metadata trailers = new Metadata();

    Unary(Runnable release) {
      this.release = release;
    }

    @Override
    public void onMessage(A message) {
      this.message = message;
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      this.status = status;
      this.trailers = trailers;
      release.run();
      closed.countDown();
    }
  }

  /**
   * Repeats a call that is safe to repeat until it has an answer. The last attempt is at {@code until}. It throws the
   * last failure that says more than that the time was over. A stop ends it earlier.
   */
  <Q, A> Answer<A> callUntil(
      MethodDescriptor<Q, A> method, Q request, long until, long timeout, boolean interruptible, Stop stop)
      throws Failure, InterruptedException {
    Pauses pauses = new Pauses();
    Failure cause = null;
    boolean renewed = false;
    while (true) {
      long sent = Clock.now();
      Failure failed;
      try {
        long lasts = Math.max(SHORTEST, Math.min(timeout, until - sent));
        return new Answer<>(call(method, request, lasts, interruptible, stop), sent);
      } catch (Failure e) {
        failed = e;
      }
      if (failed.outdated && !renewed) {
        renewed = true;
        continue;
      }
      long left = until - Clock.now();
      long delay = failed.retryAfter == 0 ? Math.min(pauses.next(), left) : failed.retryAfter;
      if (failed.code != Status.Code.DEADLINE_EXCEEDED || cause == null) {
        cause = failed;
      }
      if (!failed.retryable() || left <= 0 || delay > left) {
        throw cause;
      }
      boolean isStopped =
          interruptible ? stop.await(delay) : Waiting.uninterruptibly(stop::await, delay);
      if (isDown()) {
        throw new GateClosedException();
      }
      if (isStopped) {
        throw cause;
      }
    }
  }

  /** The same, by a thread whose interruption does not end it. */
  <Q, A> Answer<A> callUntil(MethodDescriptor<Q, A> method, Q request, long until, long timeout) throws Failure {
    try {
      return callUntil(method, request, until, timeout, false, down);
    } catch (InterruptedException e) {
      throw new AssertionError(e);
    }
  }

  /** The addresses of {@code ipv4:} and {@code ipv6:}, which the gRPC of Java does not know. */
  private static final class ListResolver extends NameResolverProvider {
    @Override
    protected boolean isAvailable() {
      return true;
    }

    @Override
    protected int priority() {
      return 0; // the scheme of the highest one is the default of the process
    }

    @Override
    public String getDefaultScheme() {
      return Address.LIST_SCHEME;
    }

    @Override
    public @Nullable NameResolver newNameResolver(URI target, NameResolver.Args args) {
      if (!Address.LIST_SCHEME.equals(target.getScheme())) {
        return null;
      }
      List<EquivalentAddressGroup> found = new ArrayList<>();
      for (InetSocketAddress address : Address.readList(target)) {
        found.add(new EquivalentAddressGroup((SocketAddress) address));
      }
      return new NameResolver() {
        @Override
        public String getServiceAuthority() {
          return "localhost";
        }

        @Override
        public void start(Listener2 listener) {
          listener.onResult(
              ResolutionResult.newBuilder().setAddressesOrError(StatusOr.fromValue(found)).build());
        }

        @Override
        public void shutdown() {}
      };
    }
  }

  static URI uri(String scheme, String path) {
    try {
      return new URI(scheme, "", "/" + path, null);
    } catch (URISyntaxException e) {
      throw new MisconfiguredException("server", "the address cannot be used");
    }
  }
}
