// Package slackgate guards handlers of slack-go: each event is handled once, and those of a thread one at a
// time, over all processes.
//
//	guard := slackgate.New(gate)
//	handler.HandleEvents(slackevents.AppMention, guard.Socket(onMention)) // Socket Mode
//	mux.Handle("POST /slack/events", guard.Events(signingSecret, onEvent)) // or HTTP
//
// A handler's turn is oncegate.TurnOf(ctx). An event is acknowledged after its handler: if the process
// dies in the middle, or the handler returns an error, Slack delivers the event again. What comes meanwhile
// is refused, so that Slack tries again.
//
// A message of a busy thread is acknowledged, and waits in this process, which has the only copy then: a crash, or
// an error of its handler, loses it. If its turn is lost, or the end of its turn has no answer, the guard asks for
// another turn within [Wait]. What is dropped is logged with its event. At the end of the process, wait for those by
// [Guard.Join] before the gate is drained.
//
// A handler that panics fails its turn, as if it had returned an error; the panic is logged with its stack, and
// the process lives on, as with net/http. A handler may end its turn itself, by Turn.Succeed or Turn.Reject, and
// return no error: that is acknowledged, too. What goes wrong is logged by the gate's logger.
package slackgate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/oncegate/oncegate/clients/go/oncegate"
)

const (
	// Slack wants its answer within 3 s.
	patienceBeforeAck = 2500 * time.Millisecond
	patienceAfterAck  = 30 * time.Second
	ackTimeout        = 10 * time.Second

	// lastRetry: Slack delivers an event that is not acknowledged three more times.
	lastRetry = 3

	longestWait = 10 * time.Minute // that the server accepts

	usualBackground = 256
)

// A Guard runs handlers in turns.
type Guard struct {
	gate          *oncegate.Gate
	wait          time.Duration
	maxBackground int
	ackFirst      bool
	onBusy        func(ctx context.Context, d oncegate.Delivery)
	options       []oncegate.TurnOption

	mu sync.Mutex
	// running deliveries, those that wait included. A sync.WaitGroup would not allow new ones during Join.
	running int
	// background: those that run or wait after they were acknowledged. Each of them was running before.
	background int
	joining    bool
	hasEnded   *sync.Cond
}

// An Option is an option of a guard.
type Option func(*Guard)

// Wait sets how long an acknowledged delivery waits for its turn. Default: 10 min. With 0, an event of a busy thread
// is refused while Slack will deliver it again.
func Wait(wait time.Duration) Option { return func(g *Guard) { g.wait = wait } }

// MaxBackground sets how many acknowledged deliveries may run or wait in this process. Default: 256. Beyond it,
// [AckFirst] has no effect, and a delivery that would wait is refused. That loses an interaction, a command and the
// last retry of an event. One busy thread of Slack can use up the number for all.
func MaxBackground(number int) Option { return func(g *Guard) { g.maxBackground = number } }

// AckFirst acknowledges when the turn has begun, and not after the handler: for events whose handler takes longer than
// the 6 min for which Slack redelivers; and, over Socket Mode, for interactions and commands whose handler takes longer
// than the 3 s of Slack. If the process dies in the middle, the event is lost.
func AckFirst() Option { return func(g *Guard) { g.ackFirst = true } }

// OnBusy is called if the conversation of an interaction or a command, which come over Socket Mode, is busy, before it
// waits: for an ephemeral message.
func OnBusy(report func(ctx context.Context, d oncegate.Delivery)) Option {
	return func(g *Guard) { g.onBusy = report }
}

// Turn sets options of the turns. Their wait and patience are the guard's.
func Turn(options ...oncegate.TurnOption) Option { return func(g *Guard) { g.options = options } }

// New makes a guard.
func New(gate *oncegate.Gate, options ...Option) *Guard {
	g := &Guard{gate: gate, wait: longestWait, maxBackground: usualBackground}
	g.hasEnded = sync.NewCond(&g.mu)
	for _, option := range options {
		option(g)
	}
	return g
}

// Join waits for the deliveries that run or wait in this process, or until ctx has ended, whose error it returns
// then. Those that wait for their turn end without it if the gate is drained or closed before.
//
// From its call on, the guard refuses deliveries, so that Slack delivers them to another process. It still takes what
// Slack would not deliver again.
func (g *Guard) Join(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.hasEnded.Broadcast()
	})()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.joining = true
	for g.running+g.background > 0 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		g.hasEnded.Wait()
	}
	return nil
}

// begin counts a delivery until ended is called. False: it is to be refused.
func (g *Guard) begin(d *delivered) (ended func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.joining && d.canRefuse {
		return nil, false
	}
	return g.count(&g.running), true
}

// acknowledged acknowledges a delivery, and calls work beside it. False: too many are acknowledged already.
func (g *Guard) acknowledged(d *delivered, work func()) bool {
	g.mu.Lock()
	if g.background >= g.maxBackground {
		g.mu.Unlock()
		return false
	}
	ended := g.count(&g.background)
	g.mu.Unlock()
	d.ack()
	go func() {
		defer ended()
		work()
	}()
	return true
}

// count is called with the lock.
func (g *Guard) count(number *int) (ended func()) {
	*number++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		*number--
		g.hasEnded.Broadcast()
	}
}

// A delivered is one delivery, and how to answer it.
type delivered struct {
	oncegate.Delivery
	name      slog.Attr
	canRefuse bool
	handle    func(ctx context.Context) error
	ack       func()
	refuse    func(after time.Duration)
}

// nameOf names a delivery in the log: by the id of its event, or that of its envelope.
func nameOf(payload []byte, envelope string) slog.Attr {
	var read struct {
		EventID string `json:"event_id"`
	}
	if json.Unmarshal(payload, &read) != nil || read.EventID == "" {
		return slog.String("envelope", envelope)
	}
	return slog.String("event", read.EventID)
}

// run begins the turn before the answer to Slack, and answers.
func (g *Guard) run(ctx context.Context, d *delivered) {
	ended, ok := g.begin(d)
	if !ok {
		d.refuse(time.Second)
		return
	}
	defer ended()
	options := append(g.options[:len(g.options):len(g.options)],
		oncegate.Wait(0), oncegate.Patience(patienceBeforeAck))
	if d.canRefuse {
		options = append(options, oncegate.OnUnavailable(oncegate.Raise))
	}
	turn, err := g.gate.Begin(ctx, d.Delivery, options...)
	switch {
	case err != nil:
		g.refused(ctx, d, err)
	case g.ackFirst && g.acknowledged(d, func() { g.handleAcknowledged(ctx, turn, d) }):
	default:
		g.handleBeforeAck(ctx, turn, d)
	}
}

func (g *Guard) handleBeforeAck(ctx context.Context, turn *oncegate.Turn, d *delivered) {
	end, err := g.handle(turn, d)
	switch {
	case end == handled:
		d.ack()
	case d.canRefuse:
		// The turn itself has logged its loss, and protect a panic.
		var panicked *panicError
		if !errors.Is(err, oncegate.ErrLost) && !errors.As(err, &panicked) {
			g.gate.Logger().Error("a delivery of Slack failed in its turn", d.name, "error", err)
		}
		d.refuse(time.Second)
	case end == uncertain && !d.SentOnce && g.acknowledged(d, func() { g.keepAsking(ctx, d, time.Second) }):
	default:
		g.dropped(d, err)
		d.refuse(time.Second) // which shows the user that it failed
	}
}

func (g *Guard) handleAcknowledged(ctx context.Context, turn *oncegate.Turn, d *delivered) {
	switch end, err := g.handle(turn, d); end {
	case uncertain:
		g.keepAsking(ctx, d, time.Second)
	case failed:
		g.dropped(d, err)
	}
}

func (g *Guard) refused(ctx context.Context, d *delivered, refusal error) {
	switch g.actionAfter(refusal, d) {
	case acknowledge:
		g.final(d, refusal)
		d.ack()
	case refuse:
		d.refuse(retryAfter(refusal))
	case queue:
		if !g.acknowledged(d, func() {
			if g.onBusy != nil && d.SentOnce && errors.Is(refusal, oncegate.ErrBusy) {
				_ = g.protect(d.name, func() error { g.onBusy(ctx, d.Delivery); return nil })
			}
			pause := time.Duration(0) // the queue of a busy conversation is joined at once
			if !errors.Is(refusal, oncegate.ErrBusy) {
				pause = retryAfter(refusal)
			}
			g.keepAsking(ctx, d, pause)
		}) {
			g.gate.Logger().Error("a delivery of Slack was refused: MaxBackground is reached", d.name)
			d.refuse(retryAfter(refusal))
		}
	}
}

// An ending is what came of a run.
type ending int

const (
	handled ending = iota
	failed
	// uncertain: the turn was lost, or it is not known how it ended. Another turn finds out.
	uncertain
)

// handle runs the handler, and ends the turn. Rejected is handled, and so is what the handler has ended itself.
func (g *Guard) handle(turn *oncegate.Turn, d *delivered) (ending, error) {
	defer turn.Close() // also if the handler ends its goroutine
	err := g.protect(d.name, func() error { return d.handle(turn.Context()) })
	if detail, ok := oncegate.Rejected(err); ok {
		err = turn.Reject(detail)
		return endingOf(err), err
	}
	if err != nil {
		turn.Fail(err.Error())
		if endingOf(turn.Succeed(nil)) == uncertain { // a second end says how the first one went
			return uncertain, err
		}
		return failed, err
	}
	err = turn.Succeed(nil)
	return endingOf(err), err
}

// endingOf reads what an end of the turn returns.
func endingOf(err error) ending {
	var lost *oncegate.LostError
	switch {
	case err == nil:
		return handled
	case !errors.As(err, &lost):
		if errors.Is(err, oncegate.ErrOutcomeUnknown) {
			return uncertain
		}
		return failed
	}
	switch lost.Reason {
	case "CLAIM_LOST", "LEASE_LOST", "EXPIRED":
		return uncertain
	case "ENDED": // by the handler
		switch lost.Outcome {
		case "SUCCEEDED", "REJECTED":
			return handled
		case "LOST", "UNKNOWN":
			return uncertain
		}
	}
	return failed // after CLOSED and DENIED there is no turn, and after MAX_HOLD the handler would be too long again
}

// final logs a refusal after which no delivery of the event is handled.
func (g *Guard) final(d *delivered, refusal error) {
	if errors.Is(refusal, oncegate.ErrGaveUp) || errors.Is(refusal, oncegate.ErrDropped) {
		g.dropped(d, refusal)
	}
}

// dropped logs that no later delivery makes up for this one.
func (g *Guard) dropped(d *delivered, err error) {
	g.gate.Logger().Error("a delivery that is not sent again was not handled", d.name, "error", err)
}

type panicError struct{ value any }

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// protect makes a panic of the author's code an error: it must not end the deliveries of other conversations.
func (g *Guard) protect(name slog.Attr, call func() error) (err error) {
	defer func() {
		if value := recover(); value != nil {
			g.gate.Logger().Error("a handler of Slack panicked", name, "panic", value, "stack", string(debug.Stack()))
			err = &panicError{value}
		}
	}()
	return call()
}
