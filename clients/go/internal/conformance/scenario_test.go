package conformance

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const folder = "../../../conformance"

var stores = []string{"sqlite", "postgres"}

// capabilities are what a client of this language can do. No handler blocks the library, because each
// has a goroutine of its own; and a process of Go cannot fork.
var capabilities = []string{"interrupt"}

type object = map[string]any

// A scenario as it stands in clients/conformance/scenarios.
type scenario struct {
	file       string
	Name       string
	Stores     []string
	Replicas   int
	Server     []string
	Clients    map[string]object
	Deliveries object
	Needs      []string
	Steps      []object
}

func readScenario(path string) (scenario, error) {
	s := scenario{
		file: strings.TrimSuffix(filepath.Base(path), ".json"), Stores: slices.Clone(stores), Replicas: 1,
	}
	content, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(content, &s)
	}
	return s, err
}

func loadScenarios(t testing.TB) []scenario {
	t.Helper()
	paths, err := filepath.Glob(folder + "/scenarios/*.json")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scenarios in %s: %v", folder, err)
	}
	all := make([]scenario, len(paths))
	for i, path := range paths {
		if all[i], err = readScenario(path); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	return all
}

func (s *scenario) runsOn(store string) bool {
	return slices.Contains(s.Stores, store) && s.isPossible()
}

func (s *scenario) isPossible() bool {
	return !slices.ContainsFunc(s.Needs, func(need string) bool { return !slices.Contains(capabilities, need) })
}

// notePass notes for clients/behaviour that the scenario has passed.
func (s *scenario) notePass(store string) error {
	results := os.Getenv("ONCEGATE_SCENARIO_RESULTS")
	if results == "" {
		return nil
	}
	file, err := os.OpenFile(filepath.Join(results, "go"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(file, "%s\t%s\n", s.file, store)
	return errors.Join(err, file.Close())
}

// read returns a value that a step writes: JSON, a repeated text, or raw bytes.
func read(written any) any {
	switch written := written.(type) {
	case []any:
		values := make([]any, len(written))
		for i, item := range written {
			values[i] = read(item)
		}
		return values
	case object:
		if repeat, ok := written["$repeat"].([]any); ok {
			return strings.Repeat(repeat[0].(string), int(repeat[1].(float64)))
		}
		if text, ok := written["$hex"].(string); ok {
			return unhex(text)
		}
		values := object{}
		for key, item := range written {
			values[key] = read(item)
		}
		return values
	}
	return written
}

// write returns a value as a step writes it.
func write(value any) any {
	if bytes, ok := value.([]byte); ok {
		return object{"$hex": hex.EncodeToString(bytes)}
	}
	return value
}

// asJSON makes a result what JSON would make of it, so that it can be compared.
func asJSON(value any) any {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	var plain any
	if err := json.Unmarshal(data, &plain); err != nil {
		panic(err)
	}
	return plain
}

func unhex(text string) []byte {
	bytes, err := hex.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return bytes
}

func text(written any) string {
	text, _ := read(written).(string)
	return text
}

func number(written any) int {
	number, _ := written.(float64)
	return int(number)
}
