package conformance

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
)

// A mismatch: a result differs from what its step expects.
type mismatch struct{ text string }

func (m *mismatch) Error() string { return "Mismatch: " + m.text }

func mismatchf(format string, args ...any) error { return &mismatch{fmt.Sprintf(format, args...)} }

// Expectations match results, and keep the values that a scenario stores on the way.
type expectations struct{ stored map[string]any }

// match returns the first difference. A result that differs is not stored.
func (e *expectations) match(expected, result any) error {
	stored := maps.Clone(e.stored)
	if stored == nil {
		stored = map[string]any{}
	}
	if err := match(expected, result, "result", stored); err != nil {
		return err
	}
	e.stored = stored
	return nil
}

func match(expected, result any, at string, stored map[string]any) error {
	differs := func() error { return mismatchf("%s is %s, expected %s", at, shown(result), shown(expected)) }
	switch expected := expected.(type) {
	case []any:
		items, ok := result.([]any)
		if !ok || len(items) != len(expected) {
			return differs()
		}
		for i := range expected {
			if err := match(expected[i], items[i], fmt.Sprintf("%s[%d]", at, i), stored); err != nil {
				return err
			}
		}
		return nil
	case object:
		for name, argument := range expected {
			if !strings.HasPrefix(name, "$") {
				continue
			}
			if !follows(name, argument, result, stored) {
				return differs()
			}
			return nil
		}
		found, ok := result.(object)
		if !ok {
			return differs()
		}
		for key, item := range expected {
			value, isPresent := found[key]
			if isPresent == reflect.DeepEqual(item, object{"$absent": true}) {
				return mismatchf("%s.%s is %s, expected %s", at, key, shown(value), shown(item))
			}
			if !isPresent {
				continue
			}
			if err := match(item, value, at+"."+key, stored); err != nil {
				return err
			}
		}
		return nil
	}
	if !reflect.DeepEqual(expected, result) {
		return differs()
	}
	return nil
}

// follows reports whether a result is what stands in the place of a value.
func follows(rule string, argument, result any, stored map[string]any) bool {
	number, isNumber := result.(float64)
	text, isText := result.(string)
	switch rule {
	case "$set":
		stored[argument.(string)] = result
		return result != nil
	case "$get":
		value, ok := stored[argument.(string)]
		return ok && reflect.DeepEqual(value, result)
	case "$gt":
		low, ok := stored[argument.(string)].(float64)
		return ok && isNumber && number > low
	case "$between":
		limits := argument.([]any)
		return isNumber && limits[0].(float64) <= number && number <= limits[1].(float64)
	case "$contains":
		return isText && strings.Contains(text, argument.(string))
	case "$any":
		return result != nil
	case "$string_bytes":
		return isText && float64(len(text)) == argument
	case "$hex":
		return reflect.DeepEqual(result, object{"$hex": argument})
	}
	return false
}

func shown(value any) string {
	data, _ := json.Marshal(value)
	return string(data[:min(len(data), 400)])
}

func TestMatching(t *testing.T) {
	parse := func(text string) (value any) {
		if err := json.Unmarshal([]byte(text), &value); err != nil {
			t.Fatal(err)
		}
		return value
	}
	for _, test := range []struct {
		expected, result string
		matches          bool
	}{
		{`{"a": 1}`, `{"a": 1, "b": 2}`, true},
		{`{"a": null}`, `{"a": null}`, true},
		{`{"a": null}`, `{}`, false},
		{`{"a": {"$absent": true}}`, `{}`, true},
		{`{"a": {"$absent": true}}`, `{"a": null}`, false},
		{`[1, 2]`, `[1, 2]`, true},
		{`[1]`, `[1, 2]`, false},
		{`{"$between": [1, 3]}`, `3`, true},
		{`{"$between": [1, 3]}`, `4`, false},
		{`{"$any": true}`, `null`, false},
		{`{"$contains": "disk"}`, `"no disk"`, true},
		{`{"$string_bytes": 2}`, `"é"`, true},
		{`{"$hex": "00ff"}`, `{"$hex": "00ff"}`, true},
		{`{"$hex": "00ff"}`, `{"$hex": "00"}`, false},
		{`[{"$set": "x"}, {"$get": "x"}]`, `[1, 1]`, true},
		{`[{"$set": "x"}, {"$get": "x"}]`, `[1, 2]`, false},
		{`[{"$set": "x"}, {"$gt": "x"}]`, `[1, 2]`, true},
		{`[{"$set": "x"}, {"$gt": "x"}]`, `[1, 1]`, false},
		{`{"$set": "x"}`, `null`, false},
		{`{"$unknown": 1}`, `1`, false},
		{`"a"`, `"b"`, false},
	} {
		err := new(expectations).match(parse(test.expected), parse(test.result))
		if (err == nil) != test.matches {
			t.Errorf("%s and %s: %v", test.expected, test.result, err)
		}
	}
}
