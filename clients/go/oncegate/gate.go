package oncegate

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// endingTime is how long ends may go on before the connections are closed.
const endingTime = 2 * time.Second

// A Gate is the client: one a process. It connects on first use. Its methods may be called by several
// goroutines.
type Gate struct {
	config config
	link   *link
	// ctx ends all calls.
	ctx    context.Context
	cancel context.CancelFunc

	mu sync.Mutex
	// isChanged is signalled when one of the following changes.
	isChanged *sync.Cond
	holds     map[*hold]bool // those that begin, and those that are held
	tasks     int            // what Close waits for
	refusing  bool
	isDown    bool
	warned    map[string]bool

	closeOnce sync.Once
	// closing is closed once nothing is granted any more.
	closing     chan struct{}
	closingOnce sync.Once
}

// New makes a gate. It returns [ErrMisconfigured] if an option cannot be used.
func New(options ...GateOption) (*Gate, error) {
	c, err := newConfig(options)
	if err != nil {
		return nil, err
	}
	access, err := newAccess(&c)
	if err != nil {
		return nil, err
	}
	g := &Gate{config: c, holds: map[*hold]bool{}, warned: map[string]bool{}}
	g.isChanged = sync.NewCond(&g.mu)
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.link = newLink(g.ctx, access)
	g.closing = make(chan struct{})
	return g, nil
}

// Begin claims an event and its conversation, and keeps both until the turn is ended:
//
//	turn, err := gate.Begin(ctx, oncegate.Slack(body), oncegate.Wait(20*time.Second))
//	if err != nil {
//		return err // errors.Is(err, oncegate.ErrDuplicate) …
//	}
//	defer turn.Close() // fails the turn, unless it has succeeded
//	…
//	return turn.Succeed(reply)
//
// It returns a [NotGrantedError] if there is no turn; [ErrUnavailable], [ErrOverloaded], [ErrDenied],
// [ErrEpicMismatch], [ErrPayloadMismatch] or [ErrInvalid]; or that of ctx, which also ends the wait.
func (g *Gate) Begin(ctx context.Context, d Delivery, options ...TurnOption) (*Turn, error) {
	c, err := g.config.forTurn(options)
	if err != nil {
		return nil, err
	}
	t := newTurn(g, ctx, c, d)
	return t.started(g.start(&t.hold, func() error { return t.begin(ctx) }))
}

// Adopt carries on a turn that another process began, and left by [Turn.Detach]. It ends as any turn. It
// returns a [LostError] if the turn has ended.
func (g *Gate) Adopt(ctx context.Context, turnID string, options ...TurnOption) (*Turn, error) {
	c, err := g.config.forTurn(options)
	if err != nil {
		return nil, err
	}
	t := newTurn(g, ctx, c, Delivery{})
	return t.started(g.start(&t.hold, func() error { return t.adopt(ctx, turnID) }))
}

// started is the turn, or why there is none. If the body may run unguarded, it is not held.
func (t *Turn) started(err error) (*Turn, error) {
	if err == nil {
		if t.config.hooks.OnBegin != nil {
			t.config.hooks.OnBegin(t.delivery)
		}
		return t, nil
	}
	var failed *failure
	if errors.As(err, &failed) && failed.reason == "NO_KEY" {
		t.gate.warnUnguarded(&t.delivery)
		return t, nil
	}
	err = published(err)
	if errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrClosed) {
		switch t.config.onUnavailable {
		case RunUnguarded:
			t.config.log.Warn("the handler runs without a turn", "error", err)
			return t, nil
		case Drop:
			err = &NotGrantedError{Answer: Answer{Kind: Dropped}, cause: err}
		}
	}
	t.cancel(nil)
	return nil, err
}

// Lease holds a conversation:
//
//	lease, err := gate.Lease(ctx, oncegate.Thread("T1", "C1", "17.5"), oncegate.Wait(30*time.Second))
//	if err != nil {
//		return err
//	}
//	defer lease.Close()
//
// It returns [ErrBusy] if another holder has it, and the wait is over; and otherwise as [Gate.Begin].
func (g *Gate) Lease(ctx context.Context, session Session, options ...LeaseOption) (*Lease, error) {
	l := newLease(g, ctx, g.config.forLease(options), session)
	if err := g.start(&l.hold, func() error { return l.begin(ctx) }); err != nil {
		l.cancel(nil)
		return nil, published(err)
	}
	return l, nil
}

// start begins a turn or lease, and keeps it from its grant on.
func (g *Gate) start(h *hold, begin func() error) error {
	g.mu.Lock()
	if g.refusing {
		g.mu.Unlock()
		h.stop()
		return ErrClosed
	}
	g.holds[h] = true
	g.tasks++
	g.mu.Unlock()
	err := begin()
	if err == nil {
		h.watch()
		go func() {
			defer g.done()
			h.keep()
		}()
		return nil
	}
	h.stop()
	g.forget(h)
	g.done()
	return err
}

// Drain grants no new turns and leases, waits for those that run, and closes the gate. If ctx ends
// before, those that still run fail, as with Close, and it returns the error of ctx.
func (g *Gate) Drain(ctx context.Context) error {
	g.refuse()
	err := g.waitUntil(ctx, func() bool { return len(g.holds) == 0 })
	g.Close()
	return err
}

// Close fails the turns that run, so that the next delivery gets their events at once, and ends their
// contexts. It takes a few seconds if the server does not answer.
func (g *Gate) Close() {
	g.closeOnce.Do(func() {
		for _, h := range g.refuse() {
			g.spawn(h.close)
		}
		ending, cancel := context.WithTimeout(context.Background(), endingTime)
		defer cancel()
		hasNone := func() bool { return g.tasks == 0 }
		// An end that its holder has begun may not be a task yet, but what it ends is still held.
		_ = g.waitUntil(ending, func() bool { return hasNone() && len(g.holds) == 0 })
		g.mu.Lock()
		g.isDown = true
		g.mu.Unlock()
		g.cancel()
		_ = g.waitUntil(context.Background(), hasNone)
		g.link.close()
	})
}

// refuse grants no new turns and leases: their beginnings return ErrClosed. It returns the turns and leases that there are.
func (g *Gate) refuse() []*hold {
	g.mu.Lock()
	g.refusing = true
	holds := make([]*hold, 0, len(g.holds))
	for h := range g.holds {
		holds = append(holds, h)
	}
	g.mu.Unlock()
	g.closingOnce.Do(func() { close(g.closing) })
	for _, h := range holds {
		h.refuse()
	}
	return holds
}

// Done is closed once the gate grants nothing any more, because it drains or is closed.
func (g *Gate) Done() <-chan struct{} { return g.closing }

// Logger is the gate's, for what is built upon it, such as a middleware.
func (g *Gate) Logger() *slog.Logger { return g.config.log }

// waitUntil waits until the condition holds, or ctx has ended. The condition has the lock.
func (g *Gate) waitUntil(ctx context.Context, holds func() bool) error {
	stop := context.AfterFunc(ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.isChanged.Broadcast()
	})
	defer stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	for !holds() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		g.isChanged.Wait()
	}
	return nil
}

// forget: it is not held any more.
func (g *Gate) forget(h *hold) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.holds, h)
	g.isChanged.Broadcast()
}

// spawn runs a function that Close waits for, unless the gate is down.
func (g *Gate) spawn(work func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isDown {
		return
	}
	g.tasks++
	go func() {
		defer g.done()
		work()
	}()
}

// track runs a function that Close waits for, in its caller's goroutine.
func (g *Gate) track(work func()) {
	g.mu.Lock()
	g.tasks++
	g.mu.Unlock()
	defer g.done()
	work()
}

func (g *Gate) done() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tasks--
	g.isChanged.Broadcast()
}

// warnUnguarded warns once for each kind of delivery.
func (g *Gate) warnUnguarded(d *Delivery) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.warned[d.kind()] {
		g.warned[d.kind()] = true
		g.config.log.Warn("a payload names no event; its handler runs without a turn (reported once)",
			"kind", d.kind())
	}
}
