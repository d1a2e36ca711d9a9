package oncegate

import (
	"context"
	"math"
	"time"
)

// Context is that of the body: it ends if the turn or lease is lost, with [ErrLost] as its cause, if it has
// ended, or with the context that it was begun with.
func (h *hold) Context() context.Context { return h.ctx }

// Held reports whether it is held. False for a turn whose handler runs unguarded, and after its end.
func (h *hold) Held() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held && !h.over
}

// LostReason is why it was lost, see [LostError]; empty if it was not.
func (h *hold) LostReason() string {
	reason, _ := h.endedBy()
	return reason
}

// Fence is the fencing token, to be sent with each write; 0 without a session.
func (h *hold) Fence() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fence
}

// KeptBy is "stream" while the server renews it over a stream, and "renew" while this library does by calls.
func (h *hold) KeptBy() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.renewing {
		return "renew"
	}
	return "stream"
}

// Waiters is how many callers wait for the session.
func (h *hold) Waiters() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiters
}

// Left is the time to the trusted end. It moves with each renewal. A turn whose handler runs unguarded has
// the longest duration left.
func (h *hold) Left() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.held {
		return math.MaxInt64
	}
	return h.trustedEnd - now()
}

// Check returns a [LostError] if it is lost or has ended, or its trusted end has passed. Call it before an
// outside write.
func (h *hold) Check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.over:
		return h.lost(orElse(h.lostReason, "ENDED"), nil)
	case h.held && h.trustedEnd <= now():
		return h.lost("EXPIRED", nil)
	}
	return nil
}
