// Tests the quick start of the README, as it stands there.
package main

import (
	_ "embed"
	"io"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/oncegate/oncegate/clients/go/oncegatetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

//go:embed main.go
var program string

func TestTheQuickStartRuns(t *testing.T) {
	_, server := oncegatetest.Start(t)
	t.Setenv("ONCEGATE_SERVER", server.Address())
	os.Args = []string{"bot", `{"type": "event_callback", "team_id": "T1", "event_id": "Ev1",
		"event": {"type": "app_mention", "channel": "C1", "ts": "17.5"}}`}
	first, second := printed(t, main), printed(t, main)
	answer, isRun := strings.CutPrefix(first, "ran ")
	if !isRun || !strings.HasPrefix(answer, "an answer, with fence ") {
		t.Errorf("the first run: %q", first)
	}
	if second != "duplicate "+answer {
		t.Errorf("the second run: %q", second)
	}
}

// printed returns what a call prints, which a pipe has room for.
func printed(t *testing.T, call func()) string {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	stdout := os.Stdout
	os.Stdout = write
	call()
	os.Stdout = stdout
	write.Close()
	text, err := io.ReadAll(read)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTheReadmeHasIt(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "```go\n")
	if block, _, _ := strings.Cut(rest, "```"); block != program {
		t.Errorf("the first block of Go is not main.go: %s", block)
	}
	_, code, _ := strings.Cut(program, "\n)\n")
	lines := 0
	for line := range strings.Lines(code) {
		if line != "\n" {
			lines++
		}
	}
	if lines < 10 || lines > 15 {
		t.Errorf("%d lines of code", lines)
	}
}
