package io.oncegate.conformance;

import static org.junit.jupiter.api.Assertions.assertEquals;

import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

final class ExpectationsTest {
  @ParameterizedTest
  @CsvSource(
      delimiter = ';',
      quoteCharacter = '\'',
      value = {
        "{\"a\": 1}; {\"a\": 1, \"b\": 2}; true",
        "{\"a\": null}; {\"a\": null}; true",
        "{\"a\": null}; {}; false",
        "{\"a\": {\"$absent\": true}}; {}; true",
        "{\"a\": {\"$absent\": true}}; {\"a\": null}; false",
        "[1, 2]; [1, 2]; true",
        "[1]; [1, 2]; false",
        "1; 1.0; true",
        "{\"$between\": [1, 3]}; 3; true",
        "{\"$between\": [1, 3]}; 4; false",
        "{\"$any\": true}; null; false",
        "{\"$contains\": \"disk\"}; \"no disk\"; true",
        "{\"$string_bytes\": 2}; \"é\"; true",
        "{\"$hex\": \"00ff\"}; {\"$hex\": \"00ff\"}; true",
        "{\"$hex\": \"00ff\"}; {\"$hex\": \"00\"}; false",
        "[{\"$set\": \"x\"}, {\"$get\": \"x\"}]; [1, 1]; true",
        "[{\"$set\": \"x\"}, {\"$get\": \"x\"}]; [1, 2]; false",
        "[{\"$set\": \"x\"}, {\"$gt\": \"x\"}]; [1, 2]; true",
        "[{\"$set\": \"x\"}, {\"$gt\": \"x\"}]; [1, 1]; false",
        "{\"$set\": \"x\"}; null; false",
        "{\"$unknown\": 1}; 1; false",
        "\"a\"; \"b\"; false"
      })
  void matches(String expected, String result, boolean matches) {
    boolean matched = true;
    try {
      new Expectations().match(Json.parse(expected), Json.parse(result));
    } catch (Mismatch e) {
      matched = false;
    }
    assertEquals(matches, matched);
  }
}
