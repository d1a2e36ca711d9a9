package conformance

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/oncegate/oncegate/clients/go/oncegate"
)

// A client does the steps of one gate.
type client interface {
	do(step object) any
	close()
}

// A scope is one open turn or lease. Its body waits for the step that ends it.
type scope struct {
	step    object
	ctx     context.Context
	cancel  context.CancelFunc
	ending  chan object
	entered chan any
	left    chan any
	held    view
}

func callerContext(step object) (context.Context, context.CancelFunc) {
	if timeout, ok := step["timeout_ms"]; ok {
		return context.WithTimeout(context.Background(), millis(timeout))
	}
	return context.WithCancel(context.Background())
}

// body waits for the step that ends it, or for its cancellation.
func (s *scope) body(held view) (any, error) {
	s.held = held
	s.entered <- granted(held)
	interrupted := held.Context().Done()
	if s.step["ignores_loss"] == true {
		interrupted = nil
	}
	select {
	case step := <-s.ending:
		return bodyOf(step)
	case <-interrupted:
		return nil, context.Cause(held.Context())
	}
}

// end makes the body return, and waits for what comes of it.
func (s *scope) end(step object) any {
	if step["cancel"] == true {
		s.cancel()
	} else {
		s.ending <- step
	}
	left := <-s.left
	s.left <- left
	return left
}

// called is what the hooks of a gate were called with.
type called struct {
	mu     sync.Mutex
	begun  int
	queued []int
	lost   []string
	ended  []string
}

func (c *called) locked(note func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	note()
}

func (c *called) hooks() oncegate.Hooks {
	return oncegate.Hooks{
		OnBegin:  func(oncegate.Delivery) { c.locked(func() { c.begun++ }) },
		OnQueued: func(position int) { c.locked(func() { c.queued = append(c.queued, position) }) },
		OnLost:   func(reason string) { c.locked(func() { c.lost = append(c.lost, reason) }) },
		OnEnd:    func(outcome string) { c.locked(func() { c.ended = append(c.ended, outcome) }) },
	}
}

func (c *called) report() any {
	c.mu.Lock()
	defer c.mu.Unlock()
	return object{
		"begun":  c.begun,
		"queued": append([]int{}, c.queued...),
		"lost":   append([]string{}, c.lost...),
		"ended":  append([]string{}, c.ended...),
	}
}

type localClient struct {
	gate   *oncegate.Gate
	called *called

	mu     sync.Mutex
	scopes map[string]*scope
}

func newLocalClient(name, server string, options object) (*localClient, error) {
	c := &localClient{called: &called{}, scopes: map[string]*scope{}}
	quiet := oncegate.WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))
	gate, err := oncegate.New(append(gateOptions(name, server, options), oncegate.WithHooks(c.called.hooks()), quiet)...)
	c.gate = gate
	return c, err
}

func (c *localClient) close() {
	for _, scope := range c.scopes {
		scope.cancel()
		select {
		case scope.ending <- object{}:
		default:
		}
		<-scope.left
	}
	c.gate.Close()
}

func (c *localClient) scope(name any) *scope {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.scopes[name.(string)]
}

func (c *localClient) do(step object) any {
	ctx, cancel := callerContext(step)
	has := func(verb string) bool { _, ok := step[verb]; return ok }
	switch {
	case step["open"] == "turn":
		return c.open(step, ctx, cancel, c.turn)
	case step["open"] == "lease":
		return c.open(step, ctx, cancel, c.lease)
	case has("adopt"):
		return c.open(step, ctx, cancel, c.adopt)
	}
	defer cancel()
	switch {
	case has("end"):
		return c.scope(step["end"]).end(step)
	case has("detach"):
		return c.detach(c.scope(step["detach"]))
	case has("state"):
		return state(c.scope(step["state"]).held)
	case has("check"):
		if err := c.scope(step["check"]).held.Check(); err != nil {
			return failed(err)
		}
		return object{"ok": true}
	case has("run"):
		return c.run(ctx, step)
	case has("once"):
		return c.once(ctx, step)
	case has("mark"):
		item, err := c.gate.Mark(ctx, delivery(step["mark"]))
		if err != nil {
			return failed(err)
		}
		return object{"first": item.First, "event_id": item.EventID}
	case has("seen"):
		return c.seen(ctx, step)
	case has("mark_all"):
		return c.markAll(ctx, step)
	case has("many"):
		return c.many(ctx, step)
	case has("hooks"):
		return c.called.report()
	case has("close"):
		c.gate.Close()
		return nil
	case has("drain_ms"):
		draining, cancel := context.WithTimeout(ctx, millis(step["drain_ms"]))
		defer cancel()
		_ = c.gate.Drain(draining)
		return nil
	}
	panic(fmt.Sprintf("no verb in %v", step))
}

func (c *localClient) open(step object, ctx context.Context, cancel context.CancelFunc, body func(*scope) any) any {
	s := &scope{
		step: step, ctx: ctx, cancel: cancel,
		ending: make(chan object, 1), entered: make(chan any, 1), left: make(chan any, 1),
	}
	c.mu.Lock()
	c.scopes[step["as"].(string)] = s
	c.mu.Unlock()
	go func() { s.left <- body(s) }()
	select {
	case granted := <-s.entered:
		return granted
	case left := <-s.left: // it was not granted
		s.left <- left
		return left
	}
}

func (c *localClient) turn(s *scope) any {
	handler := func(_ context.Context, turn *oncegate.Turn) (any, error) { return s.body(turn) }
	return outcome(oncegate.Run(s.ctx, c.gate, delivery(s.step["delivery"]), handler, turnOptions(s.step)...))
}

func (c *localClient) lease(s *scope) any {
	lease, err := c.gate.Lease(s.ctx, session(s.step["session"]), leaseOptions(s.step)...)
	if err != nil {
		return failed(err)
	}
	defer lease.Close()
	result, err := s.body(lease)
	if lost := lease.Release(); lost != nil {
		err = lost
	}
	if err != nil {
		return failed(err)
	}
	return object{"ran": write(result)}
}

func (c *localClient) adopt(s *scope) any {
	turn, err := c.gate.Adopt(s.ctx, text(s.step["adopt"]))
	if err != nil {
		return failed(err)
	}
	defer turn.Close()
	result, err := s.body(turn)
	if err == nil {
		err = turn.Succeed(result)
	}
	if err != nil {
		return failed(err)
	}
	return object{"ran": write(result)}
}

func (c *localClient) detach(s *scope) any {
	id, err := s.held.(*oncegate.Turn).Detach()
	if err != nil {
		return failed(err)
	}
	result := object{"turn_id": id}
	for key, value := range s.end(object{}).(object) {
		result[key] = value
	}
	return result
}

func (c *localClient) run(ctx context.Context, step object) any {
	handler := func(ctx context.Context, _ *oncegate.Turn) (any, error) {
		select {
		case <-time.After(millis(step["body_ms"])):
			return bodyOf(step)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return outcome(oncegate.Run(ctx, c.gate, delivery(step["run"]), handler, turnOptions(step)...))
}

func (c *localClient) once(ctx context.Context, step object) any {
	ran := false
	if step["typed"] == true {
		body := func(context.Context, *oncegate.Turn) (date, error) {
			ran = true
			day, err := time.Parse(time.DateOnly, text(step["result"]))
			return date{day}, err
		}
		day, err := oncegate.Once(ctx, c.gate, delivery(step["once"]), body, oncegate.ResultCodec(dateCodec{}))
		if err != nil {
			return failed(err)
		}
		return object{"returned": day.Format(time.DateOnly), "body_ran": ran, "type_ok": !day.IsZero()}
	}
	body := func(context.Context, *oncegate.Turn) (any, error) {
		ran = true
		return bodyOf(step)
	}
	value, err := oncegate.Once(ctx, c.gate, delivery(step["once"]), body)
	if err != nil {
		return failed(err)
	}
	return object{"returned": write(value), "body_ran": ran, "type_ok": true}
}

func (c *localClient) seen(ctx context.Context, step object) any {
	seen, err := c.gate.Seen(ctx, delivery(step["seen"]))
	var result any
	if err == nil {
		err = seen.Result(&result)
	}
	if err != nil {
		return failed(err)
	}
	return object{
		"state": seen.State, "event_id": seen.EventID, "outcome": orNull(seen.Outcome), "result": write(result),
	}
}

func (c *localClient) markAll(ctx context.Context, step object) any {
	given := manyDeliveries(step)
	count, first, inOrder, problems := 0, 0, true, []any{}
	for item, err := range c.gate.MarkAll(ctx, slices.Values(given)) {
		if err != nil {
			return failed(err)
		}
		if item.Err != nil {
			problem := errorFields(item.Err)
			problem["index"] = count
			problems = append(problems, problem)
		}
		if item.First {
			first++
		}
		inOrder = inOrder && reflect.DeepEqual(item.Delivery, given[count])
		count++
	}
	return object{
		"count": count, "first": first, "duplicates": count - first - len(problems),
		"errors": problems, "in_order": inOrder,
	}
}

// many makes so many turns; each is ended when all have begun.
func (c *localClient) many(ctx context.Context, step object) any {
	count := number(step["count"])
	var entered, done sync.WaitGroup
	entered.Add(count)
	ran := make(chan struct{}, count)
	for i := range count {
		done.Go(func() {
			name := fmt.Sprintf("many-%d", i)
			d := oncegate.Delivery{Team: text(step["team"]), Event: name, Session: oncegate.Session{ID: name}}
			handler := func(context.Context, *oncegate.Turn) (struct{}, error) {
				entered.Done()
				entered.Wait()
				return struct{}{}, nil
			}
			if out, err := oncegate.Run(ctx, c.gate, d, handler); err == nil && out.Kind == oncegate.Ran {
				ran <- struct{}{}
			}
		})
	}
	done.Wait()
	return object{"ran": len(ran)}
}
