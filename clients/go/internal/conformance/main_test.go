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
	// Nothing that a gate has started outlives it.
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		database.close()
		os.Exit(code)
	}), goleak.IgnoreAnyFunction("github.com/oncegate/oncegate/clients/go/internal/conformance.(*lineProcess).read"))
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
				if err := runScenario(&s, store); err != nil {
					t.Errorf("%s: %v", s.Name, err)
				}
			})
		}
	}
}
