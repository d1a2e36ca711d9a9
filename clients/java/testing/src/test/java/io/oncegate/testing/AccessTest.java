package io.oncegate.testing;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.oncegate.Delivery;
import io.oncegate.DeniedException;
import io.oncegate.Gate;
import io.oncegate.LostReason;
import io.oncegate.MarkItem;
import io.oncegate.MisconfiguredException;
import io.oncegate.Turn;
import io.oncegate.TurnLostException;
import io.oncegate.UnavailableException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.time.Duration;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.api.parallel.Execution;
import org.junit.jupiter.api.parallel.ExecutionMode;

/** TLS, client certificates and tokens, against the real server. Most of it is waiting. */
@Execution(ExecutionMode.CONCURRENT)
final class AccessTest {
  private static final Delivery OF_FIRST = Delivery.of("T1", "E1");
  private static final Delivery OF_SECOND = Delivery.of("T2", "E1");

  @TempDir Path folder;

  @Test
  void tokenIsReadForEachCall() throws Exception {
    try (Secured server = new Secured(folder, false)) {
      Path file = folder.resolve("token");
      Secured.replace(file, server.first + "\n");
      Gate gate = server.open(server.gate().tlsCa(server.authority.file).tokenFile(file));
      assertTrue(gate.mark(OF_FIRST).first());
      assertEquals("TEAM_DENIED", assertThrows(DeniedException.class, () -> gate.mark(OF_SECOND)).reason());
      Secured.replace(file, server.second + "\n");
      try (Turn turn = gate.turn(OF_SECOND).begin()) {
        turn.succeed(null);
      }
      Gate unknown = server.open(server.gate().tlsCa(server.authority.file).token("unknown"));
      assertEquals(
          "UNAUTHENTICATED", assertThrows(DeniedException.class, () -> unknown.seen(OF_FIRST)).reason());
    }
  }

  @Test
  void turnOutlivesItsToken() throws Exception {
    try (Secured server = new Secured(folder, false)) {
      Path file = folder.resolve("token");
      Secured.replace(file, server.first);
      Gate gate = server.open(server.gate().tlsCa(server.authority.file).tokenFile(file));
      Turn turn = gate.turn(OF_FIRST).begin();
      Secured.replace(file, server.second); // which may not renew it
      assertThrows(DeniedException.class, turn::detach);
      Secured.replace(file, server.first);
      turn.succeed("done");
      assertEquals("done", gate.seen(OF_FIRST).result(String.class));
    }
  }

  @Test
  void serverThatIsNotTrusted() throws Exception {
    try (Secured server = new Secured(folder, false)) {
      Authority other = new Authority(folder.resolve("other"));
      Gate gate = server.open(server.failing().tlsCa(other.file).token(server.first));
      UnavailableException problem = assertThrows(UnavailableException.class, () -> gate.mark(OF_FIRST));
      assertTrue(problem.getMessage().contains("tlsCa"), problem.getMessage());
      Gate misnamed =
          server.open(server.failing().tlsCa(server.authority.file).tlsServerName("gate.example").token(server.first));
      problem = assertThrows(UnavailableException.class, () -> misnamed.mark(OF_FIRST));
      assertTrue(problem.getMessage().contains("not valid for its name"), problem.getMessage());
    }
  }

  @Test
  void clientCertificates() throws Exception {
    try (Secured server = new Secured(folder, true)) {
      Gate without = server.open(server.failing().tlsCa(server.authority.file).token(server.first));
      UnavailableException problem = assertThrows(UnavailableException.class, () -> without.mark(OF_FIRST));
      assertTrue(problem.getMessage().contains("tlsCert"), problem.getMessage());
      Authority.Issued client = server.authority.issue("client");
      Gate gate =
          server.open(
              server.gate().tlsCa(server.authority.file).tlsCert(client.cert(), client.key()).token(server.first));
      assertTrue(gate.mark(OF_FIRST).first());
      Authority.Issued other = new Authority(folder.resolve("other")).issue("other");
      Gate mixed = server.open(server.gate().tlsCa(server.authority.file).tlsCert(other.cert(), client.key()));
      assertEquals(
          "tlsCert", assertThrows(MisconfiguredException.class, () -> mixed.mark(OF_FIRST)).option());
      Gate unknown =
          server.open(
              server.failing().tlsCa(server.authority.file).tlsCert(other.cert(), other.key()).token(server.first));
      problem = assertThrows(UnavailableException.class, () -> unknown.mark(OF_FIRST));
      assertTrue(problem.getMessage().contains("tlsCert"), problem.getMessage());
    }
  }

  @Test
  void keysOfOtherForms() throws Exception {
    try (Secured server = new Secured(folder, true)) {
      Authority.Issued client = server.authority.issue("client");
      Path key = folder.resolve("sec1.key");
      Authority.openssl("ec", "-in", client.key().toString(), "-out", key.toString());
      assertTrue(Files.readString(key).contains("BEGIN EC PRIVATE KEY"));
      Gate gate =
          server.open(server.gate().tlsCa(server.authority.file).tlsCert(client.cert(), key).token(server.first));
      assertTrue(gate.mark(OF_FIRST).first());
    }
  }

  @Test
  void certificateThatIsReplaced() throws Exception {
    try (Secured server = new Secured(folder, true)) {
      Authority.Issued used = new Authority(folder.resolve("other")).issue("client"); // which the server does not trust
      Gate gate =
          server.open(
              server
                  .gate()
                  .tlsCa(server.authority.file)
                  .tlsCert(used.cert(), used.key())
                  .token(server.first));
      CompletableFuture<MarkItem> marked = CompletableFuture.supplyAsync(() -> gate.mark(OF_FIRST));
      assertThrows(TimeoutException.class, () -> marked.get(500, TimeUnit.MILLISECONDS));
      Authority.Issued next = server.authority.issue("client");
      Files.move(next.cert(), used.cert(), StandardCopyOption.REPLACE_EXISTING);
      Files.move(next.key(), used.key(), StandardCopyOption.REPLACE_EXISTING);
      assertTrue(marked.get().first());
    }
  }

  @Test
  void turnIsLostIfItsHolderIsDenied() throws Exception {
    try (Secured server = new Secured(folder, false)) {
      Path file = folder.resolve("token");
      Secured.replace(file, server.first);
      Gate gate =
          server.open(
              server
                  .gate()
                  .tlsCa(server.authority.file)
                  .tokenFile(file)
                  .ttl(Duration.ofSeconds(9))
                  .interruptOnLoss(false));
      Gate second = server.open(server.gate().tlsCa(server.authority.file).token(server.first));
      String id;
      try (Turn turn = second.turn(OF_FIRST).ttl(Duration.ofSeconds(30)).begin()) {
        id = turn.detach();
      }
      try (Turn turn = gate.adopt(id)) { // it is renewed by calls
        Secured.replace(file, server.second);
        assertEquals(LostReason.DENIED, turn.lost().get(30, TimeUnit.SECONDS));
        assertFalse(turn.held());
        assertEquals(
            LostReason.DENIED, assertThrows(TurnLostException.class, turn::check).reason());
      }
    }
  }

  /** The server ends the stream of a token that it does not know any more, and the file holds the next one. */
  @Test
  void turnOutlivesATokenThatIsWithdrawn() throws Exception {
    try (Secured server = new Secured(folder, false)) {
      Path file = folder.resolve("token");
      Secured.replace(file, server.first);
      Gate gate = server.open(server.gate().tlsCa(server.authority.file).tokenFile(file).interruptOnLoss(false));
      Gate other =
          server.open(server.gate().tlsCa(server.authority.file).token(server.first).interruptOnLoss(false));
      try (Turn turn = gate.turn(OF_FIRST).begin();
          Turn lost = other.turn(Delivery.of("T1", "E2")).begin()) {
        server.replaceFirst(file);
        // The other gate has no newer token.
        assertEquals(LostReason.DENIED, lost.lost().get(30, TimeUnit.SECONDS));
        turn.check();
        turn.succeed("done");
        assertEquals("done", gate.seen(OF_FIRST).result(String.class));
      }
    }
  }
}
