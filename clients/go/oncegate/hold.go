package oncegate

import (
	"context"
	"errors"
	"sync"
	"time"
)

// queueSilence: in a queue the server says something every 20 s.
const queueSilence = 30 * time.Second

// A flow is what a turn and a lease do differently.
type flow interface {
	// open makes the stream, which ctx ends, and sends the request.
	open(ctx context.Context, wait time.Duration, until moment) error
	// answer reads a message of a stream that is not granted yet. Its error may be a NotGrantedError.
	answer(until moment) (granted bool, err error)
	// news reads a message of a stream that is granted.
	news(until moment) (finished bool, err error)
	// makeSure makes a grant one that is trusted.
	makeSure(ctx context.Context) error
	// renew extends it over the other connection.
	renew(ctx context.Context, until moment) error
	// giveBack ends it so that another run gets it at once.
	giveBack(detail string)
	// startOver makes the next request an attempt of its own.
	startOver()
}

// A hold is what a turn and a lease have in common: how each is granted, kept, carried on and lost. Two
// goroutines use it: the holder's, and the keeper, which runs beside the body.
type hold struct {
	gate    *Gate
	config  config
	flow    flow
	isLease bool

	ctx    context.Context // of the body
	cancel context.CancelCauseFunc
	// life ends when it is over or refused, and with the gate. stop ends it.
	life context.Context
	stop context.CancelFunc
	// answered is closed by the keeper once it does not read the stream any more, whatever the cause: an end
	// waits for it. Then finished says whether the stream has answered the end, and endFailure how it broke.
	answered chan struct{}

	mu sync.Mutex
	// held: the body has got it.
	held bool
	// over: ended or lost. The first of the two counts.
	over       bool
	lostReason string
	// refused: the gate was closed before it was granted.
	refused bool
	// hangUp breaks the stream; nil without one.
	hangUp     context.CancelFunc
	finished   bool
	endFailure error
	// reported is closed once its loss has been reported to the hooks.
	reported chan struct{}
	// unwatch stops the alarm of watch.
	unwatch    func()
	sent       moment
	trustedEnd moment
	// validEnd is the trusted end of what no stream keeps: that of the server, without the grace.
	validEnd moment
	probeAt  moment
	renewing bool
	fence    int64
	waiters  int
}

func (h *hold) init(g *Gate, ctx context.Context, c config) {
	h.gate, h.config = g, c
	h.answered, h.reported = make(chan struct{}), make(chan struct{})
	h.life, h.stop = context.WithCancel(g.ctx)
	h.unwatch = func() {}
	h.ctx, h.cancel = context.WithCancelCause(ctx)
}

// begin waits until it is granted, and asks for another one if it is lost before it is trusted.
func (h *hold) begin(ctx context.Context) error {
	defer context.AfterFunc(ctx, h.abandon)()
	waitUntil := now() + h.config.wait
	var pauses pauses
	for {
		if err := h.ask(ctx, waitUntil); err != nil {
			return err
		}
		err := h.admit(ctx, h.flow.makeSure)
		if !errors.Is(err, ErrLost) {
			return err
		}
		if now() >= waitUntil+h.config.patience {
			return unavailable("grants are lost on their way")
		}
		h.flow.startOver()
		if err := h.pause(ctx, pauses.next()); err != nil {
			return err
		}
	}
}

// ask waits for the grant. A broken request is repeated with its request id.
func (h *hold) ask(ctx context.Context, waitUntil moment) error {
	var pauses pauses
	var outage moment // since when the server is not heard of; 0: it is
	renewed := false
	for {
		sent := now()
		heard, failed, err := h.askOnce(ctx, waitUntil, sent, outage)
		if failed == nil {
			return err
		}
		if failed.outdated && !renewed {
			renewed = true
			continue
		}
		switch {
		case heard:
			outage = now()
		case outage == 0:
			outage = sent
		}
		left := outage + h.config.patience - now()
		// The last attempt is at the end of the patience, unless the server asks for more.
		delay := failed.retryAfter
		if delay == 0 {
			delay = min(pauses.next(), left)
		}
		if !failed.retryable() || left <= 0 || delay > left {
			return failed
		}
		if err := h.pause(ctx, delay); err != nil {
			return err
		}
	}
}

// askOnce sends the request, and reads the answers. The failure, if there is one, may be worth a repetition.
func (h *hold) askOnce(ctx context.Context, waitUntil, sent, outage moment) (heard bool, failed *failure, err error) {
	if outage == 0 {
		outage = sent
	}
	silentAt := max(outage+h.config.patience, sent+500*time.Millisecond)
	h.mu.Lock()
	h.sent = sent
	h.mu.Unlock()
	err = h.flow.open(h.newStream(), max(0, waitUntil-sent), silentAt)
	for err == nil {
		var granted bool
		if granted, err = h.flow.answer(silentAt); granted {
			return true, nil, nil
		}
		if err == nil {
			heard = true
			silentAt = now() + queueSilence
		}
	}
	h.breakStream()
	if unwanted := h.unwanted(ctx); unwanted != nil {
		return heard, nil, unwanted
	}
	if errors.As(err, &failed) {
		return heard, failed, nil
	}
	return heard, nil, err
}

// newStream returns the context of a stream, which breakStream ends, and so do the gate's end and a refusal.
// It outlives that of the caller: a turn whose caller is cancelled is still to be ended.
func (h *hold) newStream() context.Context {
	ctx, cancel := context.WithCancel(context.WithoutCancel(h.ctx))
	stop := context.AfterFunc(h.gate.ctx, cancel)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hangUp = func() {
		stop()
		cancel()
	}
	if h.refused || h.ctx.Err() != nil {
		cancel()
	}
	return ctx
}

func (h *hold) breakStream() {
	h.mu.Lock()
	hangUp := h.hangUp
	h.hangUp = nil
	h.mu.Unlock()
	if hangUp != nil {
		hangUp()
	}
}

// abandon: the caller does not wait any more. It may come after the grant: then it is the holder's to end.
func (h *hold) abandon() {
	h.mu.Lock()
	held := h.held
	h.mu.Unlock()
	if !held { // nor will it be: admit looks at the caller's context
		h.breakStream()
	}
}

// admit gives it to the body, after confirm. What the body does not get after all goes back to the server.
func (h *hold) admit(ctx context.Context, confirm func(context.Context) error) error {
	err := confirm(ctx)
	if errors.Is(err, ErrLost) {
		h.breakStream()
		return err
	}
	h.mu.Lock()
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && h.refused {
		err = ErrClosed
	}
	h.held = err == nil
	h.mu.Unlock()
	if err != nil {
		h.breakStream()
		h.gate.spawn(func() { h.flow.giveBack("its holder did not begin") })
	}
	return err
}

// carryOn renews from now on, instead of the stream.
func (h *hold) carryOn(ctx context.Context) error {
	h.breakStream()
	if err := h.confirm(ctx); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.renewing = true
	return nil
}

// confirm renews before the body runs, within the patience, until the trusted end lies ahead.
func (h *hold) confirm(ctx context.Context) error {
	until := now() + max(time.Second, min(h.config.ttl, h.config.patience))
	var pauses pauses
	for {
		err := h.flow.renew(ctx, until)
		var failed *failure
		if errors.As(err, &failed) && failed.lost() {
			return h.lost(failed.reason, failed)
		}
		if err != nil || h.left() > 0 {
			return err
		}
		if now() >= until {
			return unavailable("renewals are answered after their trusted end")
		}
		if err := h.pause(ctx, pauses.next()); err != nil {
			return err
		}
	}
}

// pause ends early if it is not wanted any more.
func (h *hold) pause(ctx context.Context, delay time.Duration) error {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-h.life.Done():
	case <-ctx.Done():
	}
	return h.unwanted(ctx)
}

// unwanted returns why it is not wanted any more: the gate was closed, or the caller was cancelled.
func (h *hold) unwanted(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refused {
		return ErrClosed
	}
	return ctx.Err()
}

// refuse: the gate is closed. If it has not begun, its beginning returns ErrClosed.
//
// The server grants nothing to a cancelled stream. A grant that is on its way lasts for its grace.
func (h *hold) refuse() {
	h.mu.Lock()
	held := h.held
	if !held {
		h.refused = true
		h.stop()
	}
	h.mu.Unlock()
	if !held {
		h.breakStream()
	}
}

// finish makes it over, with the reason of its loss if it is one. False if it was over before. Its holder, who
// gives no reason, then learns of a loss after the hooks.
func (h *hold) finish(lostReason string) bool {
	h.mu.Lock()
	if h.over {
		isLate := lostReason == "" && h.lostReason != ""
		h.mu.Unlock()
		if isLate {
			<-h.reported
		}
		return false
	}
	defer h.mu.Unlock()
	h.over, h.lostReason = true, lostReason
	h.stop()
	h.unwatch()
	return true
}

// lose: it ended without its holder, unless it was over before.
func (h *hold) lose(reason string) {
	if h.finish(reason) {
		h.breakStream()
		h.reportLoss(reason)
	}
}

// close: the gate ends it under its holder.
func (h *hold) close() {
	h.mu.Lock()
	held := h.held
	h.mu.Unlock()
	if held && h.finish("CLOSED") {
		h.reportLoss("CLOSED")
		h.flow.giveBack("the gate was closed")
	}
}

func (h *hold) reportLoss(reason string) {
	defer close(h.reported)
	h.cancel(ErrLost)
	what := "turn"
	if h.isLease {
		what = "lease"
	}
	h.config.log.Warn("a "+what+" was lost", "reason", reason)
	if h.config.hooks.OnLost != nil {
		h.config.hooks.OnLost(reason)
	}
	if !h.isLease && h.config.hooks.OnEnd != nil {
		h.config.hooks.OnEnd("LOST")
	}
	h.gate.forget(h)
}

func (h *hold) lost(reason string, failed *failure) *LostError {
	err := &LostError{Lease: h.isLease, Reason: reason}
	if failed != nil {
		err.cause = failed.cause
	}
	return err
}
