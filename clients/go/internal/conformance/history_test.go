package conformance

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/oncegate/oncegate/clients/go/oncegate"
)

const (
	// settleTime is how long the library may read what came in time while it was held up.
	settleTime = 500 * time.Millisecond
	// lateBeat: a pulse that is later than this has stood still.
	lateBeat = 40 * time.Millisecond
)

// A written is a write of a body, after a check that passed.
type written struct {
	checked time.Time // when the check began
	trusted time.Time // the trusted end, read after it
}

// A pause: this process stood still, as one of the faults, or because other processes ran.
type pause struct{ began, ended time.Time }

// A ranBody is a handler's body.
type ranBody struct {
	run            int
	event, session string
	attempt        int
	fence          int64
	entered        time.Time
	trustedAtEntry time.Time
	// checks before each write. Else it relies on the library's interruption.
	checks bool
	writes []written
	// left is when its last statement ran, and trusted its last trusted end then.
	left, trusted time.Time
}

// An answered is what one delivery of an event came to: an outcome, or an error.
type answered struct {
	run   int
	event string
	out   oncegate.Outcome[string]
	err   error
	at    time.Time
}

func (a *answered) isRan() bool { return a.err == nil && a.out.Kind == oncegate.Ran }

func (a *answered) isDuplicate() bool { return a.err == nil && a.out.Kind == oncegate.Duplicate }

// isSettled: nobody need handle the event any more.
func (a *answered) isSettled() bool {
	return a.isRan() || a.isDuplicate() || a.err == nil && a.out.Kind == oncegate.GaveUp
}

// isRefused: there was no turn, as is to be expected.
func (a *answered) isRefused() bool { return a.err == nil && a.out.Kind != oncegate.Ran }

func (a *answered) kind() string {
	if a.err == nil {
		return a.out.Kind.String()
	}
	return errorFields(a.err)["kind"].(string)
}

// A forced: a session was released by force, which raised its fence. The next holds may have raised it
// further before it was read.
type forced struct {
	session       string
	before, after int64
}

// A history is what happened in random runs.
type history struct {
	margin      time.Duration
	maxAttempts int

	mu      sync.Mutex
	planned []int
	bodies  []*ranBody
	answers []answered
	forced  []forced
	// pauses do not overlap: one pulse records them.
	pauses []pause
	// records are the events as the server has them at the end.
	records map[string]object
}

func (h *history) note(note func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	note()
}

// beat records when the process stands still, until the returned function is called.
func (h *history) beat() (stop func()) {
	const every = 20 * time.Millisecond
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			due := time.Now().Add(every)
			select {
			case <-time.After(every):
			case <-done:
			}
			if now := time.Now(); now.Sub(due) > lateBeat {
				h.note(func() { h.pauses = append(h.pauses, pause{due, now}) })
			}
			select {
			case <-done:
				return
			default:
			}
		}
	}()
	return func() {
		close(done)
		<-stopped
	}
}

// awake is how much of this time the process did not stand still.
func (h *history) awake(since, until time.Time) time.Duration {
	awake := until.Sub(since)
	for _, p := range h.pauses {
		began, ended := p.began, p.ended
		if began.Before(since) {
			began = since
		}
		if ended.After(until) {
			ended = until
		}
		awake -= max(0, ended.Sub(began))
	}
	return awake
}

// isForced: a session was released by force between the grants of two holds, as far as the fences say. The
// release can overtake a grant that is on its way.
func (h *history) isForced(one, other *ranBody) bool {
	low, high := min(one.fence, other.fence), max(one.fence, other.fence)
	return low != high && slices.ContainsFunc(h.forced, func(f forced) bool {
		return f.session == one.session && f.before < high && low < f.after
	})
}

// pairs are each body of a session with each that was entered later.
func (h *history) pairs(yield func(before, after *ranBody) bool) {
	ordered := slices.Clone(h.bodies)
	slices.SortFunc(ordered, func(one, other *ranBody) int { return one.entered.Compare(other.entered) })
	for i, after := range ordered {
		for _, before := range ordered[:i] {
			if before.session == after.session && !yield(before, after) {
				return
			}
		}
	}
}

func grouped[T any, K comparable](items []T, key func(T) K) map[K][]T {
	groups := map[K][]T{}
	for _, item := range items {
		groups[key(item)] = append(groups[key(item)], item)
	}
	return groups
}

// isKnown: an error of the library, or the handler's own.
func isKnown(err error) bool {
	var own *ownError
	return err == nil || errors.As(err, &own) || errorFields(err)["kind"] != "unexpected" &&
		errorFields(err)["kind"] != "cancelled"
}
