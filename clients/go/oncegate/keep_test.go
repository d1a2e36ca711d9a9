package oncegate

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

// A scripted flow: what its stream brings, and how its renewals go.
type scripted struct {
	flow
	brought func() (finished bool, err error)
	renewed func(ctx context.Context) error
}

func (s *scripted) news(moment) (bool, error) { return s.brought() }

func (s *scripted) renew(ctx context.Context, _ moment) error { return s.renewed(ctx) }

// newHold is held over a stream.
func newHold(t *testing.T, flow *scripted) *hold {
	withoutEnvironment(t)
	gate, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(gate.Close)
	h := &hold{flow: flow, held: true, hangUp: func() {}}
	h.init(gate, t.Context(), gate.config)
	t.Cleanup(func() { h.finish("") })
	return h
}

var claimLost = &failure{code: codes.FailedPrecondition, reason: "CLAIM_LOST"}

// An end waits for the keeper's answer.
func TestTheKeeperAlwaysAnswersAnEnd(t *testing.T) {
	for name, news := range map[string]func(h *hold) (bool, error){
		"finished":               func(*hold) (bool, error) { return true, nil },
		"broken after the end":   func(h *hold) (bool, error) { h.finish(""); return false, unavailable("gone") },
		"broken":                 func(*hold) (bool, error) { return false, unavailable("gone") },
		"lost":                   func(*hold) (bool, error) { return false, claimLost },
		"hung up after the end":  func(h *hold) (bool, error) { h.finish(""); h.breakStream(); return false, nil },
		"hung up before the end": func(h *hold) (bool, error) { h.breakStream(); return false, nil },
	} {
		s := &scripted{}
		h := newHold(t, s)
		s.brought = func() (bool, error) { return news(h) }
		h.readNews()
		select {
		case <-h.answered:
		default:
			t.Errorf("%s: an end would wait for ever", name)
		}
		if h.finished != (name == "finished") {
			t.Errorf("%s: finished is %v", name, h.finished)
		}
	}
}

func TestAnEndLearnsOfALossAtTheSameTime(t *testing.T) {
	s := &scripted{brought: func() (bool, error) { return false, claimLost }}
	h := newHold(t, s)
	h.readNews()
	if !errors.Is(h.endFailure, claimLost) || h.LostReason() != "CLAIM_LOST" {
		t.Errorf("%v, %s", h.endFailure, h.LostReason())
	}
}

func TestACallerThatGoesAtTheGrantKeepsTheStream(t *testing.T) {
	h := newHold(t, &scripted{})
	h.abandon()
	if h.hangUp == nil {
		t.Error("the stream of a turn that was granted is broken")
	}
	h.held = false
	h.abandon()
	if h.hangUp != nil {
		t.Error("the stream of a turn that nobody waits for is open")
	}
}

// The keeper may be held up, such as by a file that hangs.
func TestTheTrustedEndDoesNotWaitForTheKeeper(t *testing.T) {
	h := newHold(t, &scripted{})
	h.trustedEnd = now() + 100*time.Millisecond
	h.watch()
	if err := h.Check(); err != nil {
		t.Error(err)
	}
	<-h.ctx.Done()
	if now() < h.trustedEnd || context.Cause(h.ctx) != ErrLost || h.LostReason() != "EXPIRED" {
		t.Errorf("%v, %s", context.Cause(h.ctx), h.LostReason())
	}
}

func TestTheTrustedEndMoves(t *testing.T) {
	h := newHold(t, &scripted{})
	h.trustedEnd = now() + 50*time.Millisecond
	h.watch()
	h.mu.Lock()
	first := h.trustedEnd
	h.trustedEnd = now() + 400*time.Millisecond
	h.mu.Unlock()
	<-h.ctx.Done()
	if now() < first+300*time.Millisecond {
		t.Error("it is lost at an end that has moved")
	}
}

// After a suspension of the machine, the trusted end is nearer than a timer of Go knows.
func TestTheTrustedEndComesNearer(t *testing.T) {
	h := newHold(t, &scripted{})
	h.trustedEnd = now() + time.Hour
	h.watch()
	h.mu.Lock()
	h.trustedEnd = now()
	h.mu.Unlock()
	var lost *LostError
	if err := h.Check(); !errors.As(err, &lost) || lost.Reason != "EXPIRED" {
		t.Errorf("at once: %v", err)
	}
	<-h.ctx.Done()
	if late := now() - h.trustedEnd; late > 10*watchEvery {
		t.Errorf("it is lost %v after its trusted end", late)
	}
}

// A renewal that waits for the server ends with the turn, and so does its goroutine.
func TestARenewalEndsWithItsTurn(t *testing.T) {
	renewing := make(chan struct{})
	s := &scripted{renewed: func(ctx context.Context) error {
		close(renewing)
		<-ctx.Done()
		return ctx.Err()
	}}
	h := newHold(t, s)
	h.trustedEnd = now() + time.Hour
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		h.keepRenewing()
	}()
	<-renewing
	h.finish("")
	<-kept
	if h.LostReason() != "" {
		t.Errorf("lost by %s", h.LostReason())
	}
}

func TestAnEndReturnsAfterTheHooksOfALoss(t *testing.T) {
	h := newHold(t, &scripted{})
	entered, leave := make(chan struct{}), make(chan struct{})
	h.config.hooks.OnLost = func(string) {
		close(entered)
		<-leave
	}
	go h.lose("EXPIRED")
	<-entered
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		h.finish("")
	}()
	select {
	case <-ended:
		t.Error("its holder learns of the loss before the hooks")
	case <-time.After(100 * time.Millisecond):
	}
	close(leave)
	<-ended
}

// An end that its holder has begun is given its time, also before it has sent anything.
func TestACloseWaitsForAnEndThatBegins(t *testing.T) {
	h := newHold(t, &scripted{})
	h.gate.holds[h] = true
	h.finish("")
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		h.gate.Close()
	}()
	select {
	case <-closed:
		t.Error("the gate is closed under an end")
	case <-time.After(100 * time.Millisecond):
	}
	h.gate.forget(h)
	<-closed
}

func TestAFileThatHangs(t *testing.T) {
	withoutEnvironment(t)
	var logged strings.Builder
	c, err := newConfig([]GateOption{WithTokenFile("token"), WithLogger(slog.New(slog.NewTextHandler(&logged, nil)))})
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAccess(&c)
	if err != nil {
		t.Fatal(err)
	}
	content := "first"
	hangs, reads := make(chan struct{}), 0
	a.tokenFile.load = func(string) ([]byte, error) {
		reads++
		if reads == 2 {
			<-hangs
		}
		return []byte(content), nil
	}
	var tokens []string
	began := now()
	use := func() {
		token, err := a.currentToken()
		if err != nil {
			t.Error(err)
		}
		tokens = append(tokens, token)
	}
	use()
	for range 10 { // only the first one waits
		use()
	}
	if took := now() - began; took > 2*readTime {
		t.Errorf("the calls waited for %v", took)
	}
	content = "second"
	close(hangs)
	for tokens[len(tokens)-1] != "second" && now() < began+10*time.Second {
		use()
	}
	if !slices.Equal(slices.Compact(tokens), []string{"first", "second"}) {
		t.Errorf("the tokens are %v", tokens)
	}
	if strings.Count(logged.String(), "cannot be read in time") != 1 {
		t.Errorf("the log is %s", &logged)
	}
}
