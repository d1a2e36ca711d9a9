package io.oncegate.testing;

import io.oncegate.Gate;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;

/** A server with TLS and two principals, each with a token and a team of its own. */
final class Secured implements AutoCloseable {
  final Authority authority;
  final String first;
  final String second;
  private final Path auth;
  private final Token ofSecond;
  private final OncegateServer server;
  private final List<Gate> gates = new ArrayList<>();

  /** A token, and the line by which the server knows it. */
  private record Token(String text, String line) {
    static Token create() throws IOException {
      Process made = new ProcessBuilder(System.getenv("ONCEGATE_BINARY"), "token", "new").start();
      List<String> lines = new String(made.getInputStream().readAllBytes()).strip().lines().toList();
      return new Token(lines.get(0), lines.get(1));
    }
  }

  Secured(Path folder, boolean asksForCertificates) throws IOException, InterruptedException {
    authority = new Authority(folder.resolve("authority"));
    auth = folder.resolve("auth.toml");
    Token ofFirst = Token.create();
    ofSecond = Token.create();
    first = ofFirst.text();
    second = ofSecond.text();
    write(ofFirst);
    Authority.Issued issued = authority.issue("server");
    List<String> arguments =
        new ArrayList<>(
            List.of(
                "--tls-cert", issued.cert().toString(), "--tls-key", issued.key().toString(), "--auth", auth.toString(),
                "--reload-interval", "1s"));
    if (asksForCertificates) {
      arguments.addAll(List.of("--tls-client-ca", authority.file.toString()));
    }
    server = OncegateServer.create(arguments.toArray(new String[0])).start();
  }

  private void write(Token ofFirst) throws IOException {
    replace(auth, principal("first", "T1", ofFirst) + principal("second", "T2", ofSecond));
  }

  private static String principal(String name, String team, Token token) {
    return String.format(
        "[[principal]]%nname = \"%s\"%nrole = \"bot\"%nteams = [\"%s\"]%n%s%n", name, team, token.line());
  }

  /** Gives the first principal another token, once the file has it: the server then refuses the former one. */
  void replaceFirst(Path file) throws IOException {
    Token next = Token.create();
    replace(file, next.text());
    write(next);
  }

  static void replace(Path file, String content) throws IOException {
    Path next = file.resolveSibling(file.getFileName() + ".next");
    Files.writeString(next, content);
    Files.move(next, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
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
