package slackgate

import (
	"context"
	"errors"
	"time"

	"github.com/oncegate/oncegate/clients/go/oncegate"
)

// An action is the handling of a delivery whose turn was not granted.
type action int

const (
	// acknowledge: there is nothing left to do.
	acknowledge action = iota
	// refuse: Slack delivers again, or shows the user that it failed.
	refuse
	// queue: acknowledge; this process has the only copy now, and waits for the turn.
	queue
)

func (g *Guard) actionAfter(refusal error, d *delivered) action {
	switch {
	case isFinal(refusal):
		return acknowledge
	case errors.Is(refusal, oncegate.ErrBusy):
		if d.canRefuse && g.wait <= 0 {
			return refuse
		}
		return queue
	case d.canRefuse:
		return refuse
	case !isRefusal(refusal):
		return refuse // a retry cannot succeed
	case !d.SentOnce:
		return queue
	case errors.Is(refusal, oncegate.ErrInProgress):
		return acknowledge
	}
	return refuse // which shows the user that it failed
}

// isFinal: the event needs no further run.
func isFinal(refusal error) bool {
	return errors.Is(refusal, oncegate.ErrDuplicate) || errors.Is(refusal, oncegate.ErrGaveUp) ||
		errors.Is(refusal, oncegate.ErrDropped)
}

// isRefusal: there may be a turn later.
func isRefusal(err error) bool {
	return errors.Is(err, oncegate.ErrNotGranted) || errors.Is(err, oncegate.ErrOverloaded) ||
		errors.Is(err, oncegate.ErrUnavailable) && !errors.Is(err, oncegate.ErrClosed)
}

func retryAfter(refusal error) time.Duration {
	var notGranted *oncegate.NotGrantedError
	var other *oncegate.Error
	switch {
	case errors.As(refusal, &notGranted):
		return notGranted.RetryAfter
	case errors.As(refusal, &other):
		return other.RetryAfter
	}
	return time.Second
}

// keepAsking repeats the request for a turn until the event is handled, or the wait is over.
func (g *Guard) keepAsking(ctx context.Context, d *delivered, pause time.Duration) {
	until := time.Now().Add(g.wait)
	for {
		select {
		case <-time.After(pause):
		case <-g.gate.Done():
		}
		options := append(g.options[:len(g.options):len(g.options)],
			oncegate.Wait(min(longestWait, max(0, time.Until(until)))), oncegate.Patience(patienceAfterAck))
		turn, err := g.gate.Begin(ctx, d.Delivery, options...)
		mayRetry := isRefusal(err)
		pause = retryAfter(err)
		switch {
		case err == nil:
			var end ending
			if end, err = g.handle(turn, d); end == handled {
				return
			}
			mayRetry, pause = end == uncertain, time.Second
		case isFinal(err):
			g.final(d, err)
			return
		}
		left := time.Until(until)
		if !errors.Is(err, oncegate.ErrOverloaded) {
			pause = min(pause, left) // the last request is at the end of the wait
		}
		if !mayRetry || left <= 0 || pause > left {
			g.dropped(d, err)
			return
		}
	}
}
