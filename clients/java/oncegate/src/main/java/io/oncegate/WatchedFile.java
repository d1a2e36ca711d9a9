package io.oncegate;

import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executor;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.jspecify.annotations.Nullable;

/** A file that an option names. */
final class WatchedFile {
  private static final int MAX_SIZE = 1024 * 1024;

  static final long READ_TIME = TimeUnit.SECONDS.toNanos(2);
  private static final String LATE = "it cannot be read in time";

  /** Of all gates of a process: a file that hangs must not keep a gate from being closed. */
  private static final Executor READERS =
      new ThreadPoolExecutor(
          0,
          Integer.MAX_VALUE,
          1,
          TimeUnit.SECONDS,
          new SynchronousQueue<>(),
          work -> Threads.make(work, "oncegate-files", System.getLogger("oncegate")));

  final String option;
  final String path;
  private final Load load;
  private final Executor readers;
  private @Nullable CompletableFuture<byte[]> reading; // guarded by this

  /** How a file is read. */
  interface Load {
    byte[] read(String path) throws IOException;
  }

  WatchedFile(String option, String path) {
    this(option, path, WatchedFile::readRegular, READERS);
  }

  /** For tests. */
  WatchedFile(String option, String path, Load load) {
    this(option, path, load, READERS);
  }

  /** For tests. */
  WatchedFile(String option, String path, Load load, Executor readers) {
    this.option = option;
    this.path = path;
    this.load = load;
    this.readers = readers;
  }

  /** What it holds, without white space around it. Never empty. */
  String readText() {
    String problem;
    try {
      String content = new String(readInTime(), StandardCharsets.ISO_8859_1).strip();
      if (!content.isEmpty()) {
        return content;
      }
      problem = "it is empty";
    } catch (IOException | InvalidPathException e) {
      problem = String.valueOf(e.getMessage());
    }
    throw new MisconfiguredException(option, "cannot use the file " + path + ": " + problem);
  }

  /** Reads it in another thread: calls must not wait for a file system that does not answer. */
  private synchronized byte[] readInTime() throws IOException {
    if (reading != null && !reading.isDone()) {
      throw new IOException(LATE);
    }
    CompletableFuture<byte[]> read = new CompletableFuture<>();
    reading = read;
    try {
      readers.execute(
          () -> {
            try {
              read.complete(load.read(path));
            } catch (Throwable e) { // else later calls would take it for a read that hangs
              read.completeExceptionally(e);
            }
          });
    } catch (RuntimeException | Error e) { // no thread can be made
      read.completeExceptionally(e);
    }
    try {
      return Waiting.uninterruptibly(
          nanos -> {
            try {
              return read.get(nanos, TimeUnit.NANOSECONDS);
            } catch (ExecutionException | TimeoutException e) {
              throw new CompletionException(e instanceof ExecutionException ? e.getCause() : new IOException(LATE));
            }
          },
          READ_TIME);
    } catch (CompletionException e) {
      Throwable cause = e.getCause();
      throw cause instanceof IOException ? (IOException) cause : new IOException(String.valueOf(cause));
    }
  }

  /** A pipe without a writer would keep this waiting. */
  private static byte[] readRegular(String path) throws IOException {
    Path file = Path.of(path);
    if (!Files.exists(file)) {
      throw new IOException("it does not exist");
    }
    if (!Files.isRegularFile(file)) {
      throw new IOException("it is not a regular file");
    }
    if (!Files.isReadable(file)) {
      throw new IOException("permission denied");
    }
    // A stream of java.io: the interruption of a thread would close a channel.
    try (InputStream opened = new FileInputStream(file.toFile())) {
      byte[] content = opened.readNBytes(MAX_SIZE + 1);
      if (content.length > MAX_SIZE) {
        throw new IOException("it is larger than 1 MiB");
      }
      return content;
    }
  }
}
