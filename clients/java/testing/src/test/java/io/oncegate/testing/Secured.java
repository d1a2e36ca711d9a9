package io.oncegate.testing;

import io.oncegate.Gate;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;

/** A server with TLS and two principals, each with a token and a team of its own. */
final class Secured implements AutoCloseable {
  final Authority authority;
  final String first;
  final String second;
  private final OncegateServer server;
  private final List<Gate> gates = new ArrayList<>();

  Secured(Path folder, boolean asksForCertificates) throws IOException, InterruptedException {
    authority = new Authority(folder.resolve("authority"));
    StringBuilder principals = new StringBuilder();
    List<String> tokens = new ArrayList<>();
    for (String who : List.of("first T1", "second T2")) {
      Process made = new ProcessBuilder(System.getenv("ONCEGATE_BINARY"), "token", "new").start();
      List<String> lines = new String(made.getInputStream().readAllBytes()).strip().lines().toList();
      tokens.add(lines.get(0));
      String[] words = who.split(" ");
      principals
          .append("[[principal]]\nname = \"" + words[0] + "\"\nrole = \"bot\"\nteams = [\"" + words[1] + "\"]\n")
          .append(lines.get(1))
          .append('\n');
    }
    first = tokens.get(0);
    second = tokens.get(1);
    Path auth = folder.resolve("auth.toml");
    Files.writeString(auth, principals);
    Authority.Issued issued = authority.issue("server");
    List<String> arguments =
        new ArrayList<>(
            List.of(
                "--tls-cert", issued.cert().toString(), "--tls-key", issued.key().toString(), "--auth", auth.toString()));
    if (asksForCertificates) {
      arguments.addAll(List.of("--tls-client-ca", authority.file.toString()));
    }
    server = OncegateServer.create(arguments.toArray(new String[0])).start();
  }

  Gate.Builder gate() {
    return Gate.builder().server("https://" + server.address()).patience(Duration.ofSeconds(20));
  }

  /** For a gate that is expected to fail: it need not try for long. */
  Gate.Builder failing() {
    return gate().patience(Duration.ofSeconds(3));
  }

  /** A gate that is closed with the server. */
  Gate open(Gate.Builder builder) {
    Gate gate = builder.build();
    gates.add(gate);
    return gate;
  }

  @Override
  public void close() {
    gates.forEach(Gate::close);
    server.close();
  }
}
