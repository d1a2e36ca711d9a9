package oncegate

import (
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// moment is a time on the clock that ends are counted on.
type moment = time.Duration

// A timer that is late by more than late was held up: the process stood still, or had no processor. What
// came meanwhile is read first, for catchUp.
const (
	late    = 200 * time.Millisecond
	catchUp = 300 * time.Millisecond
)

// ringAt calls ring at a time, unless stop is called before. ring must not block.
func ringAt(at moment, ring func()) (stop func()) {
	var stopped atomic.Bool
	due := func() {
		if !stopped.Load() {
			ring()
		}
	}
	timer := time.AfterFunc(at-now(), func() {
		if now()-at > late {
			time.AfterFunc(catchUp, due)
		} else {
			due()
		}
	})
	return func() {
		stopped.Store(true)
		timer.Stop()
	}
}

// pauses between attempts: from 50 ms, doubling to 1 s, with jitter.
type pauses struct{ last time.Duration }

func (p *pauses) next() time.Duration {
	p.last = max(50*time.Millisecond, min(2*p.last, time.Second))
	return time.Duration((0.75 + 0.5*rand.Float64()) * float64(p.last))
}
