package conformance

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
)

// A testbed is the server behind proxies, and the faults of a scenario.
type testbed struct {
	*lineProcess
	replicas []string
}

func startTestbed(store string, replicas int, server []string) (*testbed, error) {
	if store == "postgres" {
		if err := database.start(); err != nil {
			return nil, err
		}
	}
	arguments := []string{"--store", store, "--replicas", fmt.Sprint(replicas), "--"}
	lines, err := startLines(exec.Command(testbedProgram(), append(arguments, server...)...))
	if err != nil {
		return nil, err
	}
	b := &testbed{lineProcess: lines}
	for _, address := range lines.greeting["ready"].(object)["replicas"].([]any) {
		b.replicas = append(b.replicas, address.(string))
	}
	return b, nil
}

const databaseVariable = "ONCEGATE_TEST_DATABASE_URL"

// A postgres is one database server for all scenarios, unless there is one already.
type postgres struct {
	once  sync.Once
	lines *lineProcess
	err   error
}

var database postgres

func (p *postgres) start() error {
	p.once.Do(func() {
		if os.Getenv(databaseVariable) != "" {
			return
		}
		if p.lines, p.err = startLines(exec.Command(testbedProgram(), "postgres")); p.err == nil {
			p.err = os.Setenv(databaseVariable, p.lines.greeting["ready"].(object)["url"].(string))
		}
	})
	return p.err
}

func (p *postgres) close() {
	if p.lines != nil {
		p.lines.close()
	}
}

func testbedProgram() string { return os.Getenv("ONCEGATE_TESTBED") }

// checkTestbed says what is missing.
func checkTestbed() error {
	if _, err := os.Stat(testbedProgram()); err != nil {
		return errors.New("ONCEGATE_TESTBED names no testbed: cargo build --example testbed")
	}
	return nil
}
