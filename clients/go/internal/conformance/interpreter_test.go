package conformance

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

const (
	defaultWithin = 15 * time.Second
	pollEvery     = 30 * time.Millisecond
)

// An interpreter executes the steps of a scenario.
type interpreter struct {
	scenario     *scenario
	testbed      *testbed
	clients      map[string]client
	background   map[string]*running
	turnIDs      map[string]any // of the turns that were detached
	expectations expectations
}

// running is a step that has been started.
type running struct {
	step    object
	started time.Time
	done    chan struct{}
	took    time.Duration
	result  any
	err     error
}

func newInterpreter(s *scenario, b *testbed) *interpreter {
	return &interpreter{
		scenario: s, testbed: b,
		clients: map[string]client{}, background: map[string]*running{}, turnIDs: map[string]any{},
	}
}

func (i *interpreter) run() error {
	defer func() {
		for _, client := range i.clients {
			client.close()
		}
	}()
	for index, step := range i.scenario.Steps {
		if err := i.step(step); err != nil {
			return fmt.Errorf("step %d: %s\n%w", index+1, shown(step), err)
		}
	}
	if len(i.background) > 0 {
		return fmt.Errorf("no step awaits %v", slices.Sorted(maps.Keys(i.background)))
	}
	return nil
}

func (i *interpreter) step(step object) error {
	_, hasExpect := step["expect"]
	_, hasWithin := step["within_ms"]
	name, isAwait := step["await"].(string)
	switch {
	case step["sleep_ms"] != nil:
		time.Sleep(millis(step["sleep_ms"]))
		return nil
	case isAwait:
		running := i.background[name]
		if running == nil {
			return fmt.Errorf("nothing runs as %s", name)
		}
		delete(i.background, name)
		return i.finish(running, step)
	case step["background"] == true:
		running, err := i.start(step)
		i.background[step["as"].(string)] = running
		return err
	case hasExpect && hasWithin && isLook(step):
		return i.poll(step)
	}
	return i.execute(step)
}

// poll repeats a look until it matches. A server that is down may not answer.
func (i *interpreter) poll(step object) error {
	deadline := time.Now().Add(millis(step["within_ms"]))
	for {
		err := i.execute(step)
		var differs *mismatch
		var unanswered *processError
		mayMatchLater := errors.As(err, &differs) || errors.As(err, &unanswered)
		if err == nil || !mayMatchLater || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pollEvery)
	}
}

func (i *interpreter) execute(step object) error {
	running, err := i.start(step)
	if err != nil {
		return err
	}
	return i.finish(running, step)
}

func (i *interpreter) start(step object) (*running, error) {
	do, err := i.prepared(step)
	if err != nil {
		return nil, err
	}
	r := &running{step: step, started: time.Now(), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.result, r.err = do()
		r.took = time.Since(r.started)
	}()
	return r, nil
}

func (i *interpreter) finish(r *running, step object) error {
	within := defaultWithin
	late := func(format string, args ...any) error { return fmt.Errorf(format, args...) }
	if given, ok := step["within_ms"]; ok {
		// A time that the scenario gives is a part of what it expects.
		within, late = millis(given), mismatchf
	}
	timer := time.NewTimer(time.Until(r.started.Add(within)))
	defer timer.Stop()
	select {
	case <-r.done:
	case <-timer.C:
		return late("not finished after %v", within)
	}
	if r.err != nil {
		return r.err
	}
	result := asJSON(r.result)
	if detached, ok := result.(object); ok && r.step["detach"] != nil {
		i.turnIDs[r.step["detach"].(string)] = detached["turn_id"]
	}
	switch atLeast := millis(step["at_least_ms"]); {
	case r.took > within:
		return late("finished after %v with %s, expected within %v", r.took, shown(result), within)
	case r.took < atLeast:
		return mismatchf("finished after %v with %s, expected %v", r.took, shown(result), atLeast)
	}
	if expected, ok := step["expect"]; ok {
		if err := i.expectations.match(expected, result); err != nil {
			return fmt.Errorf("%w\nof %s", err, shown(result))
		}
		return nil
	}
	if !isSuccess(r.step, result) {
		return mismatchf("the result is %s", shown(result))
	}
	return nil
}

// prepared returns what does a step. The client of the step is made if it is its first one.
func (i *interpreter) prepared(step object) (func() (any, error), error) {
	verb := maps.Clone(step)
	for _, key := range []string{"expect", "within_ms", "at_least_ms", "background", "client", "testbed"} {
		delete(verb, key)
	}
	if command, ok := step["testbed"].(string); ok {
		return func() (any, error) { return i.testbed.ask(command, verb) }, nil
	}
	for _, key := range []string{"delivery", "run", "once", "mark", "seen"} {
		if name, ok := verb[key].(string); ok {
			verb[key] = i.scenario.Deliveries[name]
		}
	}
	if name, ok := verb["adopt"].(string); ok {
		verb["adopt"] = i.turnIDs[name]
	}
	client, err := i.client(step["client"].(string))
	return func() (any, error) { return client.do(verb), nil }, err
}

func (i *interpreter) client(name string) (client, error) {
	if client := i.clients[name]; client != nil {
		return client, nil
	}
	options := object{"ttl_ms": 3000.0}
	maps.Copy(options, i.scenario.Clients[name])
	server := i.testbed.replicas[number(options["replica"])]
	made, err := client(nil), error(nil)
	if options["own_process"] == true {
		made, err = newChildClient(name, server, options)
	} else {
		made, err = newLocalClient(name, server, options)
	}
	if err == nil {
		i.clients[name] = made
	}
	return made, err
}

func isLook(step object) bool {
	for _, verb := range []string{"state", "hooks", "seen"} {
		if _, ok := step[verb]; ok {
			return true
		}
	}
	return step["testbed"] == "look" || step["testbed"] == "calls"
}

// isSuccess: a step without expect went well. What a look reports is data.
func isSuccess(step object, result any) bool {
	found, _ := result.(object)
	for _, key := range []string{"error", "duplicate", "gave_up", "in_progress", "busy", "dropped"} {
		if _, ok := found[key]; ok && !isLook(step) {
			return false
		}
	}
	return true
}
