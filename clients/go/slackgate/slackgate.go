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
// A message of a busy thread is acknowledged, and waits in this process, which has the only copy then.
package slackgate

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/oncegate/oncegate/clients/go/oncegate"
)

const (
	// Slack wants its answer within 3 s.
	patienceBeforeAck = 2500 * time.Millisecond
	patienceAfterAck  = 30 * time.Second

	// lastRetry: Slack delivers an event that is not acknowledged three more times.
	lastRetry = 3

	longestWait = 10 * time.Minute // that the server accepts
)

// A Guard runs handlers in turns.
type Guard struct {
	gate     *oncegate.Gate
	wait     time.Duration
	ackFirst bool
	onBusy   func(ctx context.Context, d oncegate.Delivery)
	options  []oncegate.TurnOption
	running  sync.WaitGroup
}

// An Option is an option of a guard.
type Option func(*Guard)

// Wait sets how long an acknowledged delivery waits for its turn. Default: 10 min.
func Wait(wait time.Duration) Option { return func(g *Guard) { g.wait = wait } }

// AckFirst acknowledges when the turn has begun, and not after the handler: for handlers of interactions and
// commands that take longer than the 3 s of Slack. If the process dies in the middle, the event is lost.
func AckFirst() Option { return func(g *Guard) { g.ackFirst = true } }

// OnBusy is called if the conversation of an interaction or a command is busy, before it waits: for an
// ephemeral message.
func OnBusy(report func(ctx context.Context, d oncegate.Delivery)) Option {
	return func(g *Guard) { g.onBusy = report }
}

// Turn sets options of the turns. Their wait and patience are the guard's.
func Turn(options ...oncegate.TurnOption) Option { return func(g *Guard) { g.options = options } }

// New makes a guard.
func New(gate *oncegate.Gate, options ...Option) *Guard {
	g := &Guard{gate: gate, wait: longestWait}
	for _, option := range options {
		option(g)
	}
	return g
}

// Join waits for the deliveries that were acknowledged, and run or wait in this process. Close or drain
// the gate before: then they end.
func (g *Guard) Join() { g.running.Wait() }

// A delivered is one delivery, and how to answer it.
type delivered struct {
	oncegate.Delivery
	canRefuse bool
	handle    func(ctx context.Context) error
	ack       func()
	refuse    func(after time.Duration)
}

// run begins the turn before the answer to Slack, and answers.
func (g *Guard) run(ctx context.Context, d *delivered) {
	options := append(g.options[:len(g.options):len(g.options)],
		oncegate.Wait(0), oncegate.Patience(patienceBeforeAck))
	if d.canRefuse {
		options = append(options, oncegate.OnUnavailable(oncegate.Raise))
	}
	turn, err := g.gate.Begin(ctx, d.Delivery, options...)
	switch {
	case err == nil && g.ackFirst:
		d.ack()
		g.running.Go(func() { _ = handle(turn, d) })
	case err == nil:
		if handle(turn, d) == nil {
			d.ack()
		} else {
			d.refuse(time.Second)
		}
	default:
		g.refused(ctx, d, err)
	}
}

func (g *Guard) refused(ctx context.Context, d *delivered, refusal error) {
	switch actionAfter(refusal, d) {
	case acknowledge:
		d.ack()
	case refuse:
		d.refuse(retryAfter(refusal))
	case queue:
		d.ack()
		g.running.Go(func() {
			if g.onBusy != nil && d.SentOnce && errors.Is(refusal, oncegate.ErrBusy) {
				g.onBusy(ctx, d.Delivery)
			}
			g.keepAsking(ctx, d, refusal)
		})
	}
}

// handle runs the handler, and ends the turn. Rejected is handled.
func handle(turn *oncegate.Turn, d *delivered) error {
	defer turn.Close() // also if the handler panics
	err := d.handle(turn.Context())
	if detail, ok := oncegate.Rejected(err); ok {
		err = turn.Reject(detail)
	} else if err == nil {
		err = turn.Succeed(nil)
	} else {
		turn.Fail(err.Error())
	}
	// The turn itself has logged its loss.
	if err != nil && !errors.Is(err, oncegate.ErrLost) {
		slog.Error("a delivery of Slack failed in its turn", "error", err)
	}
	return err
}
