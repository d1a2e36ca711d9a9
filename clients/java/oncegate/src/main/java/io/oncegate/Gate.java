package io.oncegate;

import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.oncegate.v1.BatchItemError;
import io.oncegate.v1.BatchMarkProcessedRequest;
import io.oncegate.v1.BatchMarkProcessedResponse;
import io.oncegate.v1.BatchMarkProcessedResult;
import io.oncegate.v1.IdempotencyServiceGrpc;
import io.oncegate.v1.IsProcessedRequest;
import io.oncegate.v1.MarkProcessedRequest;
import io.oncegate.v1.MarkProcessedResponse;
import java.lang.System.Logger.Level;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.Iterator;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Set;
import java.util.Spliterator;
import java.util.Spliterators;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BooleanSupplier;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;
import org.jspecify.annotations.Nullable;

/**
 * The client: one a process. It connects on first use. Its methods may be called by several threads.
 *
 * <pre>{@code
 * try (Gate gate = Gate.create()) {
 *   Outcome<Reply> out = gate.turn(Delivery.slack(body)).waitFor(Duration.ofSeconds(20))
 *       .run(Reply.class, turn -> answer(body));
 * }
 * }</pre>
 */
public final class Gate implements AutoCloseable {
  private static final int MAX_ITEMS = 1000;
  private static final int MAX_BYTES = 1024 * 1024;

  /** The most that a batch adds to an item's own bytes. */
  private static final int ITEM_OVERHEAD = 8;

  /** How long ends may go on before the connections are closed. */
  private static final long ENDING_TIME = TimeUnit.SECONDS.toNanos(2);

  /** How long the threads may take to end afterwards: one may be in a look-up of names. */
  private static final long THREADS_TIME = TimeUnit.SECONDS.toNanos(10);

  /** How often the trusted ends are looked at, beside when they come: they may move. */
  private static final long WATCH_EVERY = TimeUnit.MILLISECONDS.toNanos(500);

  private static final long LEAST_PATIENCE = TimeUnit.MILLISECONDS.toNanos(500);

  final Config config;
  final String holder;
  final Link link;
  private final ThreadPoolExecutor threads;
  private final CompletableFuture<Void> closing = new CompletableFuture<>();
  private final CountDownLatch unwatched = new CountDownLatch(1);
  private final Object closeLock = new Object();

  // Guarded by this.
  private final Set<Hold> holds = new HashSet<>(); // those that begin, and those that are held
  private final Set<String> warned = new HashSet<>();
  private int tasks; // what close() waits for
  private boolean isWatching;
  private boolean refusing;
  private boolean isDown;

  private Gate(Builder builder) {
    config = builder.config.copy();
    config.log = Guarded.logger(config.log);
    config.hooks = Guarded.hooks(config.hooks, config.log);
    config.check();
    holder = config.holder();
    AtomicInteger count = new AtomicInteger();
    threads =
        new ThreadPoolExecutor(
            0,
            Integer.MAX_VALUE,
            5,
            TimeUnit.SECONDS,
            new SynchronousQueue<>(),
            work -> Threads.make(work, "oncegate-" + count.incrementAndGet(), config.log));
    link = new Link(new Settings(builder.settings, config.log), threads, config.log);
  }

  /** A gate whose settings are those of the environment. */
  public static Gate create() {
    return builder().build();
  }

  /** The options of a gate. */
  public static Builder builder() {
    return new Builder();
  }

  /** Asks for an event and its conversation. */
  public TurnRequest turn(Delivery delivery) {
    return new TurnRequest(this, delivery);
  }

  /** Runs a handler once for each event: {@link TurnRequest#once}, with the options of the gate. */
  public <T extends @Nullable Object, E extends Exception> @Nullable T once(
      Delivery delivery, Class<T> type, Handler<? extends T, E> handler) throws E {
    return turn(delivery).once(type, handler);
  }

  /** Asks for a conversation alone. */
  public LeaseRequest lease(Session session) {
    return new LeaseRequest(this, session);
  }

  /**
   * Carries on a turn that another process began, and left by {@link Turn#detach}. It ends as any turn. Throws {@link
   * TurnLostException} if the turn has ended; otherwise as {@link TurnRequest#begin}.
   */
  public Turn adopt(String turnId) {
    return adopt(turnId, null);
  }

  /** The same; the event stays processed for so long. An adopted turn has no delivery that says so. */
  public Turn adopt(String turnId, @Nullable Duration eventTtl) {
    Config options = config.copy();
    options.eventTtl = eventTtl;
    Turn turn = new Turn(this, options, turnId);
    try {
      start(turn, turn::adopt);
    } catch (Failure failed) {
      throw failed.published();
    }
    return turn;
  }

  /**
   * Marks an event as processed, at most once: a crash afterwards loses it. Throws as {@link TurnRequest#begin}.
   */
  public MarkItem mark(Delivery delivery) {
    MarkProcessedResponse response =
        patiently(IdempotencyServiceGrpc.getMarkProcessedMethod(), config.markRequest(delivery));
    return new MarkItem(delivery, response.getFirst(), response.getEvent().getEventId(), null);
  }

  /**
   * Marks any number of events, and returns the answers in their order. A delivery that cannot be marked has an error of
   * its own. The stream is lazy: it marks as it is read.
   */
  public Stream<MarkItem> markAll(Iterable<Delivery> deliveries) {
    Iterator<MarkItem> items = new Batches(deliveries.iterator());
    return StreamSupport.stream(
        Spliterators.spliteratorUnknownSize(items, Spliterator.ORDERED | Spliterator.NONNULL), false);
  }

  /** Reads the state of an event, and its result. It never writes. */
  public Seen seen(Delivery delivery) {
    IsProcessedRequest request =
        IsProcessedRequest.newBuilder()
            .setEvent(delivery.eventKey(config.consumer))
            .setIncludeResult(true)
            .build();
    return new Seen(patiently(IdempotencyServiceGrpc.getIsProcessedMethod(), request), config.codec);
  }

  /**
   * Completes once the gate grants nothing any more, because it drains or is closed. Each call makes a future that the
   * gate keeps until then: call it once.
   */
  public CompletableFuture<Void> closing() {
    return closing.copy();
  }

  /** The logger of the gate, for middleware. What the author's own logger throws is ignored. */
  public System.Logger logger() {
    return config.log;
  }

  /**
   * Grants no new turns and leases, waits for those that run, and closes the gate. False if some still ran after that
   * time: they fail, as with {@link #close}.
   */
  public boolean drain(Duration atMost) {
    refuse();
    boolean ended = await(holds::isEmpty, Durations.nanos(atMost));
    close();
    return ended;
  }

  /**
   * Fails the turns that run, so that the next delivery gets their events at once, and reports their loss. It takes a few
   * seconds if the server does not answer. No thread of the gate is left afterwards.
   */
  @Override
  public void close() {
    synchronized (closeLock) {
      for (Hold hold : refuse()) {
        spawn(hold::closeByGate);
      }
      // A holder that has just ended its turn has not sent the end yet.
      await(() -> tasks == 0 && holds.isEmpty(), ENDING_TIME);
      synchronized (this) {
        isDown = true;
      }
      unwatched.countDown();
      link.close();
      await(() -> tasks == 0, THREADS_TIME);
      threads.shutdown();
      Waiting.uninterruptibly(nanos -> threads.awaitTermination(nanos, TimeUnit.NANOSECONDS), THREADS_TIME);
    }
  }

  /** Grants no new turns and leases: their beginnings throw. Returns those that there are. */
  private List<Hold> refuse() {
    List<Hold> present;
    synchronized (this) {
      refusing = true;
      present = new ArrayList<>(holds);
    }
    closing.complete(null);
    present.forEach(Hold::refuse);
    return present;
  }

  /** Waits until the condition holds, which is called with the lock. False if it does not after that time. */
  private boolean await(BooleanSupplier condition, long atMost) {
    return Waiting.uninterruptibly(
        nanos -> {
          long until = System.nanoTime() + nanos;
          synchronized (this) {
            while (!condition.getAsBoolean()) {
              long left = until - System.nanoTime();
              if (left <= 0) {
                return false;
              }
              TimeUnit.NANOSECONDS.timedWait(this, Math.max(left, TimeUnit.MILLISECONDS.toNanos(1)));
            }
            return true;
          }
        },
        atMost);
  }

  /** How a turn or lease begins. */
  interface Beginning {
    void begin() throws Failure, InterruptedException;
  }

  /** Begins a turn or lease, and keeps it from its grant on. */
  void start(Hold hold, Beginning beginning) throws Failure {
    synchronized (this) {
      if (refusing) {
        throw new GateClosedException();
      }
      holds.add(hold);
      tasks++;
    }
    boolean begun = false;
    try {
      beginning.begin();
      watch();
      keep(hold);
      begun = true;
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new CancelledException(e);
    } finally {
      if (!begun) {
        forget(hold);
        done();
      }
    }
  }

  private void keep(Hold hold) {
    try {
      threads.execute(
          () -> {
            try {
              hold.keep();
            } finally {
              done();
            }
          });
    } catch (RuntimeException | Error e) { // no thread can be made
      hold.leave();
      throw e;
    }
  }

  /** Looks at the trusted ends while something is held: a keeper may stand still, such as by a file that hangs. */
  private void watch() {
    synchronized (this) {
      if (isWatching) {
        return;
      }
      isWatching = true;
    }
    try {
      threads.execute(this::lookAtClocks);
    } catch (RejectedExecutionException | OutOfMemoryError e) { // the keepers do without
      synchronized (this) {
        isWatching = false;
      }
    }
  }

  private void lookAtClocks() {
    while (true) {
      List<Hold> present;
      synchronized (this) {
        if (holds.isEmpty() || unwatched.getCount() == 0) {
          isWatching = false;
          return;
        }
        present = new ArrayList<>(holds);
      }
      long next = WATCH_EVERY;
      for (Hold hold : present) {
        next = Math.min(next, hold.lookAtClock());
      }
      Waiting.uninterruptibly(nanos -> unwatched.await(nanos, TimeUnit.NANOSECONDS), next);
    }
  }

  /** It is not held any more. */
  synchronized void forget(Hold hold) {
    holds.remove(hold);
    notifyAll();
  }

  /** Runs something that {@link #close} waits for, unless the gate is down. */
  void spawn(Runnable work) {
    synchronized (this) {
      if (isDown) {
        return;
      }
      tasks++;
    }
    Runnable tracked =
        () -> {
          try {
            work.run();
          } finally {
            done();
          }
        };
    try {
      threads.execute(tracked);
    } catch (RejectedExecutionException | OutOfMemoryError e) { // no thread can be made
      tracked.run();
    }
  }

  /** Runs something that {@link #close} waits for, in its caller's thread. */
  void track(Runnable work) {
    synchronized (this) {
      tasks++;
    }
    try {
      work.run();
    } finally {
      done();
    }
  }

  private synchronized void done() {
    tasks--;
    notifyAll();
  }

  /** Warns once for each kind of delivery. */
  void warnUnguarded(Delivery delivery) {
    synchronized (this) {
      if (!warned.add(delivery.kind())) {
        return;
      }
    }
    config.log.log(
        Level.WARNING,
        "a payload of " + delivery.kind() + " names no event; its handler runs without a turn (reported once)");
  }

  /** Repeats a call within the patience. */
  private <Q, A> A patiently(MethodDescriptor<Q, A> method, Q request) {
    long until = Clock.now() + Math.max(config.patienceNanos(), LEAST_PATIENCE);
    synchronized (this) {
      if (isDown) {
        throw new GateClosedException();
      }
      tasks++;
    }
    try {
      return link.callUntil(method, request, until, Link.CALL_TIMEOUT, true, link.down).message;
    } catch (Failure failed) {
      throw failed.published();
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new CancelledException(e);
    } finally {
      done();
    }
  }

  /** Marks deliveries in batches: each of as many as fit into a request. */
  private final class Batches implements Iterator<MarkItem> {
    private final Iterator<Delivery> given;
    private Iterator<MarkItem> answered = List.<MarkItem>of().iterator();
    private final List<Delivery> deliveries = new ArrayList<>();
    private final List<MarkProcessedRequest> requests = new ArrayList<>();
    private int size;

    Batches(Iterator<Delivery> given) {
      this.given = given;
    }

    @Override
    public boolean hasNext() {
      while (!answered.hasNext()) {
        while (given.hasNext()) {
          Delivery next = given.next();
          MarkProcessedRequest request = config.markRequest(next);
          int bytes = request.getSerializedSize() + ITEM_OVERHEAD;
          if (!requests.isEmpty() && (requests.size() == MAX_ITEMS || size + bytes > MAX_BYTES)) {
            answered = mark().iterator();
          }
          deliveries.add(next);
          requests.add(request);
          size += bytes;
          if (answered.hasNext()) {
            return true;
          }
        }
        if (requests.isEmpty()) {
          return false;
        }
        answered = mark().iterator();
      }
      return true;
    }

    @Override
    public MarkItem next() {
      if (!hasNext()) {
        throw new NoSuchElementException();
      }
      return answered.next();
    }

    /** Marks what has been collected. */
    private List<MarkItem> mark() {
      List<Delivery> batch = List.copyOf(deliveries);
      BatchMarkProcessedRequest request =
          BatchMarkProcessedRequest.newBuilder().addAllRequests(requests).build();
      int bytes = size;
      deliveries.clear();
      requests.clear();
      size = 0;
      if (batch.size() == 1 && bytes > MAX_BYTES) {
        OncegateException tooLarge =
            new InvalidException("the delivery has more than " + MAX_BYTES + " bytes", null, null);
        return List.of(new MarkItem(batch.get(0), false, "", tooLarge));
      }
      BatchMarkProcessedResponse response =
          patiently(IdempotencyServiceGrpc.getBatchMarkProcessedMethod(), request);
      if (response.getResultsCount() != batch.size()) {
        throw new InternalException(response.getResultsCount() + " results for " + batch.size() + " marks", null);
      }
      List<MarkItem> items = new ArrayList<>();
      for (int i = 0; i < batch.size(); i++) {
        items.add(item(batch.get(i), response.getResults(i)));
      }
      return items;
    }

    private MarkItem item(Delivery delivery, BatchMarkProcessedResult result) {
      if (!result.hasError()) {
        MarkProcessedResponse response = result.getResponse();
        return new MarkItem(delivery, response.getFirst(), response.getEvent().getEventId(), null);
      }
      BatchItemError error = result.getError();
      int start = error.getField().indexOf("].");
      Failure failed =
          Failure.of(
              Status.fromCodeValue(error.getCode()).getCode(),
              error.getMessage(),
              error.getReason(),
              error.getField().substring(start < 0 ? 0 : start + 2));
      return new MarkItem(delivery, false, "", failed.published());
    }
  }

  /** The options of a gate. */
  public static final class Builder {
    private final Config config = new Config();
    private final Settings.Given settings = new Settings.Given();

    private Builder() {}

    /**
     * Sets the server: {@code HOST:PORT}, {@code https://HOST:PORT}, {@code dns:///NAME:PORT} or {@code unix:/path}.
     * Default: the environment's ONCEGATE_SERVER, else 127.0.0.1:7411.
     */
    public Builder server(String address) {
      settings.server = address;
      return this;
    }

    /**
     * Sets the application that handles the events, such as a bot's name. Each consumer handles an event once. Default:
     * one that all share.
     */
    public Builder consumer(String name) {
      config.consumer = name;
      return this;
    }

    /** Lets all consumers take turns in a conversation. Default: each has its own. */
    public Builder shareSessions() {
      config.shareSessions = true;
      return this;
    }

    /** Sets the name that others see while this process holds something. */
    public Builder holder(String name) {
      config.holder = name;
      return this;
    }

    /**
     * Sets how long a turn or lease runs unless it is renewed: how long a conversation stays with a process that
     * vanished. 1 s to 15 min; default 45 s.
     */
    public Builder ttl(Duration ttl) {
      config.ttl = ttl;
      return this;
    }

    /** Sets how long a turn stays with a process whose stream broke. Default: half the TTL, at least 5 s. */
    public Builder grace(Duration grace) {
      config.grace = grace;
      return this;
    }

    /** Sets how long to try while the server is unavailable or overloaded. Default 10 s. */
    public Builder patience(Duration patience) {
      config.patience = patience;
      return this;
    }

    /** Sets what happens to a turn after the patience. Default {@link Unavailability#RAISE}. */
    public Builder onUnavailable(Unavailability then) {
      config.onUnavailable = then;
      return this;
    }

    /** Sets after how many failed attempts an event is given up. 1 to 100; default 5. */
    public Builder maxAttempts(int attempts) {
      config.maxAttempts = attempts;
      return this;
    }

    /** Sets how results are stored. Default {@link Codec#json}. */
    public Builder codec(Codec codec) {
      config.codec = codec;
      return this;
    }

    /**
     * Sets whether a loss interrupts the thread that began the turn or lease, until it is ended. Default: it does. Without
     * it, the handler learns of a loss by {@link Hold#lost} or {@link Hold#check} only. Set it to false if the turn is used
     * by another thread than the one that began it.
     */
    public Builder interruptOnLoss(boolean interrupts) {
      config.interrupts = interrupts;
      return this;
    }

    /** Sets what to observe. */
    public Builder hooks(Hooks hooks) {
      config.hooks = hooks;
      return this;
    }

    /** Sets the logger. Default: the one of the name {@code oncegate}. */
    public Builder logger(System.Logger logger) {
      config.log = logger;
      return this;
    }

    /**
     * Sets a PEM file: the CAs that the server's certificate may come from. Default: ONCEGATE_TLS_CA, else the CAs of the
     * Java runtime.
     */
    public Builder tlsCa(Path file) {
      settings.tlsCa = file;
      return this;
    }

    /**
     * Sets PEM files: the client's certificate, with its intermediates, and its private key, not encrypted. Default:
     * ONCEGATE_CLIENT_CERT and ONCEGATE_CLIENT_KEY.
     */
    public Builder tlsCert(Path certFile, Path keyFile) {
      settings.tlsCert = certFile;
      settings.tlsKey = keyFile;
      return this;
    }

    /**
     * Sets the name that the server's certificate must be valid for, instead of that of the address. Default:
     * ONCEGATE_TLS_SERVER_NAME. For tests.
     */
    public Builder tlsServerName(String name) {
      settings.tlsServerName = name;
      return this;
    }

    /** Sets a token, which is sent with each call. */
    public Builder token(String token) {
      settings.token = token;
      return this;
    }

    /** Sets a file with the token, which is read for each call. Default: ONCEGATE_TOKEN_FILE. */
    public Builder tokenFile(Path file) {
      settings.tokenFile = file;
      return this;
    }

    /** Allows a token in plaintext to a host that is not this one. */
    public Builder insecure() {
      settings.insecure = true;
      return this;
    }

    /** For tests of the settings. */
    Builder environment(java.util.function.Function<String, @Nullable String> environment) {
      settings.environment = environment;
      return this;
    }

    Settings.Given settings() {
      return settings;
    }

    /** Makes the gate. Throws {@link MisconfiguredException} if an option cannot be used. */
    public Gate build() {
      return new Gate(this);
    }
  }
}
