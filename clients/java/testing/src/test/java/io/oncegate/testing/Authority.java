package io.oncegate.testing;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** Issues certificates, by openssl. */
final class Authority {
  private final Path folder;
  final Path file;

  Authority(Path folder) throws IOException, InterruptedException {
    this.folder = Files.createDirectories(folder);
    file = folder.resolve("ca.pem");
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj",
        "/CN=test", "-keyout", folder.resolve("ca.key").toString(), "-out", file.toString());
  }

  /** A certificate and its key. */
  record Issued(Path cert, Path key) {}

  /** Makes a certificate for 127.0.0.1, or for a client. */
  Issued issue(String name) throws IOException, InterruptedException {
    Issued issued = new Issued(folder.resolve(name + ".pem"), folder.resolve(name + ".key"));
    Path request = folder.resolve(name + ".csr");
    Path extensions = folder.resolve(name + ".ext");
    Files.writeString(extensions, "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n");
    openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=" + name, "-keyout",
        issued.key().toString(), "-out", request.toString());
    openssl(
        "x509", "-req", "-in", request.toString(), "-CA", file.toString(), "-CAkey",
        folder.resolve("ca.key").toString(), "-CAcreateserial", "-days", "1", "-extfile", extensions.toString(), "-out",
        issued.cert().toString());
    return issued;
  }

  static void openssl(String... arguments) throws IOException, InterruptedException {
    List<String> command = new ArrayList<>(List.of("openssl"));
    command.addAll(List.of(arguments));
    Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
    String output = new String(process.getInputStream().readAllBytes());
    if (process.waitFor() != 0) {
      throw new IOException(command + ": " + output);
    }
  }
}
