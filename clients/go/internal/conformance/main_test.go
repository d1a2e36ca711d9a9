// Package conformance runs the scenarios that every client library passes, and random runs under faults.
package conformance

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if arguments, ok := os.LookupEnv(childVariable); ok {
		if err := runChild(arguments); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := checkTestbed(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for variable, run := range modes {
		if arguments, ok := os.LookupEnv(variable); ok {
			if err := run(arguments); err != nil {
				fmt.Fprintln(os.Stderr, "Error:", err)
				os.Exit(1)
			}
			return
		}
	}
	goleak.VerifyTestMain(program{m}) // nothing that a gate has started outlives it
}

// modes are what this program does with a bug in it, as planted_test.go asks.
var modes = map[string]func(arguments string) error{
	scenarioVariable: runOneScenario,
	randomVariable:   runRandom,
}

type program struct{ *testing.M }

func (p program) Run() int {
	defer database.close()
	return p.M.Run()
}

func runScenario(s *scenario, store string) error {
	testbed, err := startTestbed(store, s.Replicas, s.Server)
	if err != nil {
		return err
	}
	defer testbed.close()
	if err := newInterpreter(s, testbed).run(); err != nil {
		return fmt.Errorf("%w\nlog of the server:\n%s", err, testbed.Log())
	}
	return nil
}

func TestScenarios(t *testing.T) {
	for _, store := range stores {
		for _, s := range loadScenarios(t) {
			if !s.runsOn(store) {
				continue // it is for another store, or for what no client of this language can do
			}
			t.Run(store+"/"+s.file, func(t *testing.T) {
				t.Parallel()
				err := runScenario(&s, store)
				if err == nil {
					err = s.notePass(store)
				}
				if err != nil {
					t.Errorf("%s: %v", s.Name, err)
				}
			})
		}
	}
}
