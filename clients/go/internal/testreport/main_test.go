package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sources are packages whose tests pass, fail in several ways, or cannot be built.
var sources = map[string]string{
	"go.mod": "module example\n",
	"good/good_test.go": `package good
import "testing"
func TestGood(t *testing.T) { t.Log("of a good one"); t.Run("part", func(*testing.T) {}) }
`,
	"bad/bad_test.go": `package bad
import "testing"
func TestBad(t *testing.T) {
	t.Run("good", func(t *testing.T) { t.Log("of a good part") })
	t.Run("bad", func(t *testing.T) { t.Parallel(); t.Log("the cause"); t.Error("it differs") })
}
func TestSkipped(t *testing.T) { t.Skip("not here") }
`,
	"panics/panics_test.go": `package panics
import "testing"
func TestPanic(t *testing.T) { t.Run("part", func(*testing.T) { panic("a bug") }) }
`,
	"leaks/leaks_test.go": `package leaks
import ("fmt"; "os"; "testing")
func TestMain(m *testing.M) { m.Run(); fmt.Println("a goroutine is left"); os.Exit(1) }
func TestGood(*testing.T) {}
`,
	"unbuilt/unbuilt_test.go": `package unbuilt
func missing() { undefined() }
`,
}

func TestReport(t *testing.T) {
	folder := t.TempDir()
	for name, content := range sources {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.Command("go", "test", "-vet=off", "-json", "./...")
	command.Dir = folder
	log, _ := command.Output() // fails, as its tests do
	var shown strings.Builder
	good, bad, err := report(strings.NewReader(string(log)+"not JSON"), &shown)
	if err != nil {
		t.Fatal(err)
	}
	// good, its part, good of bad, and that of leaks; bad, its part, the skipped one, the panic and its part.
	if good != 4 || bad != 5 {
		t.Errorf("%d passed, %d failed", good, bad)
	}
	for _, text := range []string{
		"--- example/bad TestBad/bad\n", "the cause", "it differs", "not here", "panic: a bug", "goroutine is left",
		"undefined: undefined", "not JSON",
	} {
		if !strings.Contains(shown.String(), text) {
			t.Errorf("%q is not shown", text)
		}
	}
	if strings.Contains(shown.String(), "of a good") {
		t.Error("the output of a test that passed is shown")
	}
	if t.Failed() {
		t.Logf("%s\nof\n%s", &shown, log)
	}
}
