package io.oncegate;

import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.AccessDeniedException;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;

/** A file that an option names. */
final class WatchedFile {
  private static final int MAX_SIZE = 1024 * 1024;

  final String option;
  final String path;

  WatchedFile(String option, String path) {
    this.option = option;
    this.path = path;
  }

  /** What it holds, without white space around it. Never empty. */
  String readText() {
    String problem;
    try {
      String content = new String(readRegular(), StandardCharsets.ISO_8859_1).strip();
      if (!content.isEmpty()) {
        return content;
      }
      problem = "it is empty";
    } catch (NoSuchFileException | FileNotFoundException e) {
      problem = "it does not exist";
    } catch (AccessDeniedException e) {
      problem = "permission denied";
    } catch (IOException | InvalidPathException e) {
      problem = String.valueOf(e.getMessage());
    }
    throw new MisconfiguredException(option, "cannot use the file " + path + ": " + problem);
  }

  /** A pipe without a writer would keep this waiting. */
  private byte[] readRegular() throws IOException {
    Path file = Path.of(path);
    if (Files.exists(file) && !Files.isRegularFile(file)) {
      throw new IOException("it is not a regular file");
    }
    // A stream of java.io: the interruption of a handler would close a channel.
    try (InputStream opened = new java.io.FileInputStream(file.toFile())) {
      byte[] content = opened.readNBytes(MAX_SIZE + 1);
      if (content.length > MAX_SIZE) {
        throw new IOException("it is larger than 1 MiB");
      }
      return content;
    }
  }
}
