package io.oncegate.bolt;

import com.google.gson.JsonObject;
import com.slack.api.Slack;
import com.slack.api.SlackConfig;
import com.slack.api.app_backend.SlackSignature;
import com.slack.api.bolt.App;
import com.slack.api.bolt.AppConfig;
import com.slack.api.bolt.request.Request;
import com.slack.api.bolt.request.RequestHeaders;
import com.slack.api.bolt.response.Response;
import com.slack.api.bolt.socket_mode.request.SocketModeRequestParser;
import com.slack.api.bolt.util.SlackRequestParser;
import com.sun.net.httpserver.HttpHandler;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URLDecoder;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.LinkedBlockingQueue;

/** Slack's side: its Web API, and its requests, which are those of a server or of Socket Mode. */
final class FakeSlack implements AutoCloseable {
  private static final String SECRET = "a secret";

  private final HttpServer api;
  private final Map<String, HttpHandler> methods = new ConcurrentHashMap<>();
  private final ExecutorService requests = Executors.newCachedThreadPool();

  FakeSlack() throws IOException {
    api = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
    answer("auth.test", "{\"ok\": true, \"team_id\": \"T1\", \"user_id\": \"U0\", \"bot_id\": \"B0\"}");
    api.start();
  }

  /** Answers a method of the Web API. Its calls come into the returned queue, as forms. */
  BlockingQueue<String> answer(String method, String answer) {
    BlockingQueue<String> calls = new LinkedBlockingQueue<>();
    byte[] bytes = answer.getBytes(StandardCharsets.UTF_8);
    HttpHandler handler =
        exchange -> {
          calls.add(new String(exchange.getRequestBody().readAllBytes(), StandardCharsets.UTF_8));
          exchange.sendResponseHeaders(200, bytes.length);
          exchange.getResponseBody().write(bytes);
          exchange.close();
        };
    if (methods.put(method, handler) == null) {
      api.createContext("/api/" + method, exchange -> methods.get(method).handle(exchange));
    }
    return calls;
  }

  /** The settings of an app in this Slack. */
  AppConfig config() {
    SlackConfig client = new SlackConfig();
    client.setMethodsEndpointUrlPrefix("http://127.0.0.1:" + api.getAddress().getPort() + "/api/");
    return AppConfig.builder()
        .slack(Slack.getInstance(client))
        .signingSecret(SECRET)
        .singleTeamBotToken("xoxb-x")
        .build();
  }

  /** A mention in the thread of channel C1 that begins with 17.5. */
  static String mention(String event) {
    return event(event, "\"type\": \"app_mention\", \"text\": \"hi\"");
  }

  static String message(String event, String text) {
    return event(event, "\"type\": \"message\", \"text\": \"" + text + "\"");
  }

  private static String event(String event, String fields) {
    return "{\"token\": \"x\", \"team_id\": \"T1\", \"api_app_id\": \"A1\", \"type\": \"event_callback\","
        + " \"event_id\": \"" + event + "\", \"authorizations\": [{\"enterprise_id\": null, \"team_id\": \"T1\","
        + " \"user_id\": \"U0\", \"is_bot\": true, \"is_enterprise_install\": false}], \"event\": {" + fields
        + ", \"channel\": \"C1\", \"user\": \"U1\", \"ts\": \"18." + Math.abs(event.hashCode())
        + "\", \"thread_ts\": \"17.5\"}}";
  }

  /** A slash command in channel C1, as a form. */
  static String command(String trigger) {
    return "token=x&team_id=T1&channel_id=C1&user_id=U1&command=%2Fdeploy&text=&api_app_id=A1&trigger_id=" + trigger;
  }

  /** A click on a button of a message in the thread of {@link #mention}, as a form. */
  static String click(String action) {
    String payload =
        "{\"type\": \"block_actions\", \"team\": {\"id\": \"T1\"}, \"user\": {\"id\": \"U1\", \"team_id\": \"T1\"},"
            + " \"api_app_id\": \"A1\", \"token\": \"x\", \"trigger_id\": \"" + action + "\", \"channel\": {\"id\":"
            + " \"C1\"}, \"container\": {\"type\": \"message\", \"message_ts\": \"17.6\", \"channel_id\": \"C1\"},"
            + " \"message\": {\"type\": \"message\", \"ts\": \"17.6\", \"thread_ts\": \"17.5\"}, \"actions\":"
            + " [{\"action_id\": \"approve\", \"block_id\": \"b\", \"type\": \"button\", \"action_ts\": \"19.1\"}]}";
    return "payload=" + URLEncoder.encode(payload, StandardCharsets.UTF_8);
  }

  static Request<?> over(boolean socketMode, App app, String body, int retry) {
    if (socketMode) {
      return new SocketModeRequestParser(app.config()).parse(envelope(body, retry)).getBoltRequest();
    }
    String stamp = String.valueOf(System.currentTimeMillis() / 1000);
    String signature = new SlackSignature.Generator(SECRET).generate(stamp, body);
    return request(app, body, stamp, signature, retry);
  }

  /** What Socket Mode sends instead of a request with this body: its payload is always JSON. */
  private static String envelope(String body, int retry) {
    String envelope = "{\"envelope_id\": \"1\", \"accepts_response_payload\": ";
    if (body.startsWith("{")) {
      return envelope + "false, \"type\": \"events_api\", \"payload\": " + body + ", \"retry_attempt\": " + retry
          + ", \"retry_reason\": \"\"}";
    }
    JsonObject form = new JsonObject();
    for (String field : body.split("&", -1)) {
      String[] parts = field.split("=", 2);
      form.addProperty(parts[0], URLDecoder.decode(parts[1], StandardCharsets.UTF_8));
    }
    return form.has("payload")
        ? envelope + "false, \"type\": \"interactive\", \"payload\": " + form.get("payload").getAsString() + "}"
        : envelope + "true, \"type\": \"slash_commands\", \"payload\": " + form + "}";
  }

  static Request<?> request(App app, String body, String stamp, String signature, int retry) {
    Map<String, List<String>> headers =
        Map.of(
            "X-Slack-Request-Timestamp", List.of(stamp),
            "X-Slack-Signature", List.of(signature),
            "X-Slack-Retry-Num", List.of(String.valueOf(retry)));
    return new SlackRequestParser(app.config())
        .parse(
            SlackRequestParser.HttpRequest.builder()
                .requestUri("/slack/events")
                .requestBody(body)
                .headers(new RequestHeaders(headers))
                .queryString(Map.of())
                .remoteAddress("127.0.0.1")
                .build());
  }

  static Response post(App app, String body, int retry) throws Exception {
    return send(false, app, body, retry);
  }

  static Response send(boolean socketMode, App app, String body, int retry) throws Exception {
    return app.run(over(socketMode, app, body, retry));
  }

  static Response post(App app, String body) throws Exception {
    return post(app, body, 0);
  }

  /** The same from another thread, as a server does. */
  CompletableFuture<Response> begin(App app, String body) {
    return begin(false, app, body);
  }

  CompletableFuture<Response> begin(boolean socketMode, App app, String body) {
    return begin(socketMode, app, body, 0);
  }

  CompletableFuture<Response> begin(App app, String body, int retry) {
    return begin(false, app, body, retry);
  }

  private CompletableFuture<Response> begin(boolean socketMode, App app, String body, int retry) {
    CompletableFuture<Response> answered = new CompletableFuture<>();
    requests.execute(
        () -> {
          try {
            answered.complete(send(socketMode, app, body, retry));
          } catch (Throwable e) {
            answered.completeExceptionally(e);
          }
        });
    return answered;
  }

  @Override
  public void close() {
    requests.shutdownNow();
    api.stop(0);
  }
}
