package example;

import com.slack.api.Slack;
import com.slack.api.SlackConfig;
import com.slack.api.app_backend.events.payload.EventsApiPayload;
import com.slack.api.bolt.App;
import com.slack.api.bolt.AppConfig;
import com.slack.api.bolt.context.builtin.EventContext;
import com.slack.api.bolt.jakarta_servlet.SlackAppServlet;
import com.slack.api.bolt.response.Response;
import com.slack.api.bolt.socket_mode.SocketModeApp;
import com.slack.api.methods.SlackApiException;
import com.slack.api.methods.SlackApiTextResponse;
import com.slack.api.model.event.AppMentionEvent;
import com.slack.api.socket_mode.SocketModeClient;
import io.oncegate.Gate;
import io.oncegate.Turn;
import io.oncegate.bolt.GuardedApp;
import io.oncegate.bolt.Turns;
import java.io.IOException;
import java.io.InterruptedIOException;
import java.time.Duration;
import org.eclipse.jetty.ee10.servlet.ServletContextHandler;
import org.eclipse.jetty.ee10.servlet.ServletHolder;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.handler.GracefulHandler;

/**
 * A Slack bot that answers every mention in its thread once, also over redelivery and crashes. A crash after the post
 * may repeat it.
 *
 * <p>Over Socket Mode if SLACK_APP_TOKEN is set, otherwise over HTTP on PORT.
 */
public final class Bot {
  private static final long THINK_MILLIS = (long) (1000 * Double.parseDouble(setting("THINK_SECONDS", "5")));

  /** Less than Kubernetes and systemd wait for after SIGTERM: 30 s and 90 s. */
  private static final Duration DRAIN_TIME = Duration.ofSeconds(25);

  /** How many handlers Socket Mode runs at once. */
  private static final int CONCURRENCY = 64;

  private Bot() {}

  public static void main(String[] arguments) throws Exception {
    SlackConfig client = new SlackConfig();
    client.setMethodsEndpointUrlPrefix(setting("SLACK_API_URL", client.getMethodsEndpointUrlPrefix()));
    client.setHttpClientReadTimeoutMillis(60_000); // a call that times out may have posted
    AppConfig config = AppConfig.builder().slack(Slack.getInstance(client)).build(); // the rest is in the environment
    Gate gate = Gate.create();
    // "off" shows what Slack's redelivery does to this bot.
    App app = setting("GUARD", "on").equals("off") ? new App(config) : new GuardedApp(config, gate);
    app.event(AppMentionEvent.class, Bot::answer);

    String appToken = System.getenv("SLACK_APP_TOKEN");
    if (appToken != null) {
      SocketModeApp socket =
          new SocketModeApp(appToken, app, SocketModeClient.Backend.JavaWebSocket, CONCURRENCY);
      atTheEnd(
          () -> {
            drain(app, gate, DRAIN_TIME.toNanos() + System.nanoTime()); // acknowledgements need the connection
            socket.close();
          });
      socket.start();
    } else {
      Server server = new Server(Integer.parseInt(setting("PORT", "3000")));
      ServletContextHandler servlets = new ServletContextHandler();
      servlets.addServlet(new ServletHolder(new SlackAppServlet(app)), "/slack/events");
      server.setHandler(new GracefulHandler(servlets));
      server.setStopTimeout(DRAIN_TIME.toMillis());
      atTheEnd(
          () -> {
            long until = DRAIN_TIME.toNanos() + System.nanoTime();
            server.stop(); // waits for the requests that it has
            drain(app, gate, until);
          });
      app.start(); // connects to oncegate; SocketModeApp does it itself
      server.start();
      server.join();
    }
  }

  private static Response answer(EventsApiPayload<AppMentionEvent> payload, EventContext ctx)
      throws IOException, SlackApiException {
    AppMentionEvent event = payload.getEvent();
    String thread = event.getThreadTs() != null ? event.getThreadTs() : event.getTs();
    check(
        ctx.client()
            .assistantThreadsSetStatus(
                status -> status.channelId(event.getChannel()).threadTs(thread).status("is thinking…")));
    think();
    Turn turn = Turns.of(ctx);
    if (turn != null) {
      turn.check();
    }
    String question = event.getText().replaceAll("<@[^>]*>", "").strip();
    check(ctx.say(message -> message.text("You said: " + question).threadTs(thread)));
    return ctx.ack();
  }

  /** A language model would do its work here. The thread is interrupted if the turn is lost. */
  private static void think() throws InterruptedIOException {
    try {
      Thread.sleep(THINK_MILLIS);
    } catch (InterruptedException e) {
      throw new InterruptedIOException("the turn was lost");
    }
  }

  /** The client returns errors of Slack as values. */
  private static void check(SlackApiTextResponse response) throws IOException {
    if (!response.isOk()) {
      throw new IOException("Slack answered " + response.getError());
    }
  }

  /** Takes no new events, and waits for those that run or wait for their thread: Slack does not deliver these again. */
  private static void drain(App app, Gate gate, long until) throws InterruptedException {
    Duration left = Duration.ofNanos(Math.max(0, until - System.nanoTime()));
    boolean isIdle = !(app instanceof GuardedApp guarded) || guarded.drain(left);
    if (!gate.drain(Duration.ZERO) || !isIdle) {
      System.err.println("some events have not ended");
    }
  }

  private interface Ending {
    void run() throws Exception;
  }

  private static void atTheEnd(Ending ending) {
    Runnable run =
        () -> {
          try {
            ending.run();
          } catch (Exception e) {
            e.printStackTrace();
          }
        };
    Runtime.getRuntime().addShutdownHook(new Thread(run, "end"));
  }

  private static String setting(String name, String otherwise) {
    String value = System.getenv(name);
    return value == null || value.isEmpty() ? otherwise : value;
  }
}
