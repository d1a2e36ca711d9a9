package oncegate

import (
	"errors"
	"time"
)

// watchEvery is how soon the end of a suspension of the machine is noticed.
const watchEvery = time.Second

// keep keeps it until it is lost, or its holder has ended it.
func (h *hold) keep() {
	if h.readNews() {
		h.keepRenewing()
	}
}

// readNews reads the stream to its end. It returns whether there is something to carry on then.
func (h *hold) readNews() bool {
	defer close(h.answered)
	for {
		h.mu.Lock()
		isOpen, isOver, probeAt := h.hangUp != nil, h.over, h.probeAt
		h.mu.Unlock()
		if !isOpen {
			return !isOver
		}
		finished, err := h.flow.news(probeAt)
		switch {
		case err != nil:
			return h.broke(err)
		case finished:
			h.mu.Lock()
			h.finished = true
			h.mu.Unlock()
			return false
		}
	}
}

// broke: the stream has ended. It returns whether there is something to carry on.
func (h *hold) broke(err error) bool {
	var failed *failure
	errors.As(err, &failed)
	h.mu.Lock()
	h.endFailure = err
	if h.over {
		h.mu.Unlock()
		return false
	}
	if failed != nil && failed.loss() != "" {
		h.mu.Unlock()
		h.lose(failed.loss()) // unless its holder ends it now; then the end finds endFailure
		return false
	}
	h.renewing = true
	if failed != nil && failed.reason == "DRAINING" { // the server says that it keeps its grants
		h.trustedEnd = h.validEnd
	}
	hangUp := h.hangUp
	h.hangUp = nil
	h.mu.Unlock()
	if hangUp != nil {
		hangUp()
	}
	return true
}

func (h *hold) keepRenewing() {
	for {
		h.mu.Lock()
		over, trustedEnd := h.over, h.trustedEnd
		h.mu.Unlock()
		if over {
			return
		}
		if err := h.flow.renew(h.life, trustedEnd); err != nil {
			h.lose(lossBy(err))
			return
		}
		left := h.left()
		if left <= 0 { // before max_hold, the server grants less than the margin
			h.lose("EXPIRED")
			return
		}
		// A turn that is longer than its lease has less of the TTL left.
		timer := time.NewTimer(min(h.config.ttl/3, left/2))
		select {
		case <-timer.C:
		case <-h.life.Done():
		}
		timer.Stop()
	}
}

// watch loses it at its trusted end, whatever the keeper waits for: its own timers do not count the time for
// which the machine was suspended, and a file may hang.
func (h *hold) watch() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.over {
		h.unwatch = ringAt(min(h.trustedEnd, now()+watchEvery), func() { h.gate.track(h.lookAtClock) })
	}
}

func (h *hold) lookAtClock() {
	if h.left() <= 0 {
		h.lose("EXPIRED")
	} else {
		h.watch()
	}
}

// lossBy says why something is lost that could not be renewed until its trusted end.
func lossBy(err error) string {
	var failed *failure
	switch {
	case errors.Is(err, ErrClosed):
		return "CLOSED"
	case errors.As(err, &failed) && failed.loss() != "":
		return failed.loss()
	}
	return "EXPIRED"
}

// trust moves the trusted end: the server said how long is left, and how long it took to say so.
//
// With a grace: the server may see a break of the stream that this side does not see, and keeps a turn
// of the stream for so long only.
func (h *hold) trust(remaining, elapsed time.Duration, sent moment, grace time.Duration) {
	lasts := remaining
	if grace > 0 {
		lasts = min(remaining, grace)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.trustedEnd = sent + elapsed + lasts - h.config.margin()
	h.validEnd = h.trustedEnd + remaining - lasts
	// A call renews after silence. Early, if it is needed anyway: the trusted end comes before the server's
	// next renewal.
	left, ttl := h.trustedEnd-now(), h.config.ttl
	latest := left * 9 / 10
	if latest <= ttl/3 {
		latest = left / 2
	}
	h.probeAt = now() + min(ttl*2/5, latest)
}

// renewTimeout is how long one renewal may take before it is repeated.
func (h *hold) renewTimeout() time.Duration { return max(500*time.Millisecond, h.config.ttl/20) }

func (h *hold) left() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.trustedEnd - now()
}

func (h *hold) sentAt() moment {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sent
}

func (h *hold) endedBy() (lostReason string, over bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lostReason, h.over
}
