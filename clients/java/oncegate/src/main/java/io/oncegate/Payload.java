package io.oncegate;

import com.google.gson.Gson;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonPrimitive;
import com.google.gson.TypeAdapter;
import com.google.gson.stream.JsonReader;
import com.google.gson.stream.JsonToken;
import com.google.protobuf.ByteString;
import io.oncegate.v1.Platform;
import java.io.IOException;
import java.io.StringReader;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/** A delivery as its platform sent it. The server reads the names from it. */
final class Payload {
  /** A body of more bytes is cut: no longer texts, and no longer lists, than the following. */
  static final int LARGE_BODY = 200 * 1024;

  private static final TypeAdapter<JsonElement> ELEMENTS = new Gson().getAdapter(JsonElement.class);
  private static final int LONG_TEXT = 1024;
  private static final int LONG_LIST = 16;

  final Platform platform;
  final Map<String, String> headers;
  final ByteString body;

  Payload(Platform platform, Map<String, String> headers, byte[] body) {
    this.platform = platform;
    this.headers = headers;
    this.body = ByteString.copyFrom(cut(body));
  }

  /** Slack delivers events again, but not interactions and commands. */
  static boolean isSlackEvent(byte[] body) {
    JsonElement read = parse(body); // a form, and a command's payload that is text, are no events
    return hasType(read) || (read instanceof JsonObject && hasType(((JsonObject) read).get("payload")));
  }

  private static boolean hasType(@Nullable JsonElement element) {
    return element instanceof JsonObject
        && new JsonPrimitive("event_callback").equals(((JsonObject) element).get("type"));
  }

  /** Leaves out what names nothing: the server takes 256 KiB, and GitHub sends up to 25 MB. */
  static byte[] cut(byte[] body) {
    if (body.length <= LARGE_BODY) {
      return body;
    }
    JsonElement value = parse(body);
    return value == null ? body : shortened(value).toString().getBytes(StandardCharsets.UTF_8);
  }

  private static JsonElement shortened(JsonElement value) {
    if (value.isJsonArray()) {
      JsonArray shorter = new JsonArray();
      for (JsonElement item : value.getAsJsonArray()) {
        if (shorter.size() == LONG_LIST) {
          break;
        }
        shorter.add(shortened(item));
      }
      return shorter;
    }
    if (value.isJsonObject()) {
      JsonObject shorter = new JsonObject();
      value.getAsJsonObject().entrySet().forEach(entry -> shorter.add(entry.getKey(), shortened(entry.getValue())));
      return shorter;
    }
    boolean isLong =
        value.isJsonPrimitive()
            && value.getAsJsonPrimitive().isString()
            && value.getAsString().getBytes(StandardCharsets.UTF_8).length > LONG_TEXT;
    return isLong ? new JsonPrimitive("") : value;
  }

  /** The JSON of a body; null if it is none. */
  private static @Nullable JsonElement parse(byte[] body) {
    JsonReader reader = new JsonReader(new StringReader(new String(body, StandardCharsets.UTF_8)));
    try {
      JsonElement value = ELEMENTS.read(reader); // JsonParser would make the reader lenient
      return reader.peek() == JsonToken.END_DOCUMENT ? value : null;
    } catch (JsonParseException | IOException e) {
      return null;
    }
  }
}
