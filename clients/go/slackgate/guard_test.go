package slackgate_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slack-go/slack/slackevents"
	"go.uber.org/goleak"

	"github.com/oncegate/oncegate/clients/go/oncegate"
	"github.com/oncegate/oncegate/clients/go/oncegatetest"
	"github.com/oncegate/oncegate/clients/go/slackgate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "a secret"

// mention is an event in the thread of channel C1 that begins with 17.5.
func mention(event string) string {
	return fmt.Sprintf(`{"token": "x", "team_id": "T1", "api_app_id": "A1", "type": "event_callback",
		"event_id": %q, "authorizations": [{"enterprise_id": null, "team_id": "T1", "user_id": "U0", "is_bot": true,
		"is_enterprise_install": false}], "event": {"type": "app_mention", "channel": "C1", "user": "U1",
		"text": "hi", "ts": "%d.000100", "thread_ts": "17.5"}}`, event, time.Now().UnixNano())
}

func post(handler http.Handler, body string, headers ...string) *httptest.ResponseRecorder {
	stamp := strconv.FormatInt(time.Now().Unix(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte("v0:" + stamp + ":" + body))
	request := httptest.NewRequest("POST", "/slack/events", strings.NewReader(body))
	request.Header.Set("X-Slack-Request-Timestamp", stamp)
	request.Header.Set("X-Slack-Signature", "v0="+hex.EncodeToString(mac.Sum(nil)))
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, request)
	return recorder
}

// errPanic makes the handler panic.
var errPanic = errors.New("a bug of the handler")

// A bot counts the runs of its handler, which do not end before they may.
type bot struct {
	runs    atomic.Int32
	entered chan string
	leave   chan error
}

func newBot() *bot { return &bot{entered: make(chan string, 10), leave: make(chan error, 10)} }

func (b *bot) handle(ctx context.Context, _ slackevents.EventsAPIEvent) error { return b.work(ctx) }

func (b *bot) work(ctx context.Context) error {
	b.runs.Add(1)
	b.entered <- oncegate.TurnOf(ctx).ID()
	err := <-b.leave
	if err == errPanic {
		panic(err)
	}
	return err
}

func (b *bot) ran(t *testing.T, times int32) {
	t.Helper()
	if runs := b.runs.Load(); runs != times {
		t.Errorf("%d runs, expected %d", runs, times)
	}
}

func (b *bot) join(t *testing.T, guard *slackgate.Guard) {
	t.Helper()
	if err := guard.Join(t.Context()); err != nil {
		t.Error(err)
	}
}

// queueing makes a gate that reports when a turn is in a queue.
func queueing(server *oncegatetest.Server) (*oncegate.Gate, <-chan int) {
	queued := make(chan int, 100)
	return server.Gate(oncegate.WithHooks(oncegate.Hooks{OnQueued: func(position int) { queued <- position }})), queued
}

type syncLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *syncLog) Write(data []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(data)
}

func (l *syncLog) has(t *testing.T, texts ...string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, text := range texts {
		if !strings.Contains(l.text.String(), text) {
			t.Errorf("%q is not in the log: %s", text, &l.text)
		}
	}
}

// logging makes a gate with a log.
func logging(server *oncegatetest.Server) (*oncegate.Gate, *syncLog) {
	log := &syncLog{}
	return server.Gate(oncegate.WithLogger(slog.New(slog.NewTextHandler(log, nil)))), log
}

func status(t *testing.T, what string, recorder *httptest.ResponseRecorder, expected int) {
	t.Helper()
	if recorder.Code != expected {
		t.Errorf("%s: %d %s", what, recorder.Code, recorder.Body)
	}
}

func TestAnEventIsHandledOnce(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	b := newBot()
	handler := slackgate.New(gate).Events(secret, b.handle)
	event := mention("Ev1")
	first := make(chan *httptest.ResponseRecorder)
	go func() { first <- post(handler, event) }()
	<-b.entered
	second := post(handler, event)
	status(t, "while it is handled", second, http.StatusServiceUnavailable)
	if second.Header().Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	b.leave <- nil
	status(t, "the first", <-first, http.StatusOK)
	status(t, "a duplicate", post(handler, event, "X-Slack-Retry-Num", "1"), http.StatusOK)
	b.ran(t, 1)
}

func TestAnErrorIsDeliveredAgain(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	b := newBot()
	handler := slackgate.New(gate).Events(secret, b.handle)
	event := mention("Ev1")
	b.leave <- errors.New("no disk")
	status(t, "the first", post(handler, event), http.StatusServiceUnavailable)
	b.leave <- oncegate.Reject("no topic")
	status(t, "rejected", post(handler, event), http.StatusOK)
	status(t, "a duplicate", post(handler, event), http.StatusOK)
	b.ran(t, 2)
}

func TestABusyThreadQueues(t *testing.T) {
	_, server := oncegatetest.Start(t)
	gate, queued := queueing(server)
	b := newBot()
	guard := slackgate.New(gate)
	handler := guard.Events(secret, b.handle)
	var first sync.WaitGroup
	first.Go(func() { post(handler, mention("Ev1")) })
	held := <-b.entered
	status(t, "the second", post(handler, mention("Ev2")), http.StatusOK)
	<-queued
	b.leave <- nil
	first.Wait()
	if next := <-b.entered; next == held {
		t.Error("the second has the first one's turn")
	}
	b.leave <- nil
	b.join(t, guard)
	b.ran(t, 2)
	if turns := server.Turns("T1"); len(turns) != 0 {
		t.Errorf("%v", turns)
	}
}

func TestWithoutAWaitABusyEventIsRefused(t *testing.T) {
	_, server := oncegatetest.Start(t)
	gate, log := logging(server)
	turn, err := server.Gate().Begin(t.Context(), oncegate.Slack([]byte(mention("Ev1"))))
	if err != nil {
		t.Fatal(err)
	}
	b := newBot()
	guard := slackgate.New(gate, slackgate.Wait(0))
	handler := guard.Events(secret, b.handle)
	busy := post(handler, mention("Ev2"))
	status(t, "busy", busy, http.StatusServiceUnavailable)
	if busy.Header().Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	last := post(handler, mention("Ev3"), "X-Slack-Retry-Num", "3") // there is no further delivery
	status(t, "the last retry", last, http.StatusOK)
	b.join(t, guard)
	log.has(t, "a delivery that is not sent again was not handled")
	b.ran(t, 0)
	turn.Close()
	b.leave <- nil
	handler = slackgate.New(gate).Events(secret, b.handle)
	status(t, "free", post(handler, mention("Ev2"), "X-Slack-Retry-Num", "1"), http.StatusOK)
	b.ran(t, 1)
}

func TestAClosedGateEndsTheQueue(t *testing.T) {
	gate, server := oncegatetest.Start(t)
	other := server.Gate(oncegate.WithHolder("other"))
	turn, err := other.Begin(t.Context(), oncegate.Slack([]byte(mention("Ev1"))))
	if err != nil {
		t.Fatal(err)
	}
	defer turn.Close()
	guard := slackgate.New(gate)
	status(t, "busy", post(guard.Events(secret, newBot().handle), mention("Ev2")), http.StatusOK)
	gate.Close()
	newBot().join(t, guard) // or the test hangs
}

func TestAJoinIsLimitedAndRefusesWhatComes(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	b := newBot()
	guard := slackgate.New(gate, slackgate.AckFirst())
	handler := guard.Events(secret, b.handle)
	status(t, "acknowledged first", post(handler, mention("Ev1")), http.StatusOK)
	<-b.entered
	limited, cancel := context.WithCancel(t.Context())
	cancel()
	if err := guard.Join(limited); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	refused := post(handler, mention("Ev2")) // its thread is busy
	status(t, "after the join", refused, http.StatusServiceUnavailable)
	if refused.Header().Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	last := post(handler, mention("Ev3"), "X-Slack-Retry-Num", "3") // it would be lost
	status(t, "the last retry after the join", last, http.StatusOK)
	b.leave <- nil
	b.leave <- nil
	b.join(t, guard)
	b.ran(t, 2)
}

func TestTooManyThatAreAcknowledged(t *testing.T) {
	_, server := oncegatetest.Start(t)
	gate, log := logging(server)
	b := newBot()
	guard := slackgate.New(gate, slackgate.AckFirst(), slackgate.MaxBackground(1))
	handler := guard.Events(secret, b.handle)
	status(t, "the first", post(handler, mention("Ev1")), http.StatusOK)
	<-b.entered
	status(t, "of a busy thread", post(handler, mention("Ev2")), http.StatusServiceUnavailable)
	log.has(t, "MaxBackground is reached", "event=Ev2")
	other := strings.ReplaceAll(mention("Ev3"), "17.5", "18.5")
	answered := make(chan *httptest.ResponseRecorder)
	go func() { answered <- post(handler, other) }()
	<-b.entered
	b.leave <- errors.New("no disk") // of either
	b.leave <- errors.New("no disk")
	status(t, "of a free thread, after its handler", <-answered, http.StatusServiceUnavailable)
	b.join(t, guard)
	b.ran(t, 2)
}

func TestTheLastRetryWaitsForTheRunBeforeIt(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	for _, result := range []error{nil, errors.New("no disk")} {
		b := newBot()
		guard := slackgate.New(gate)
		handler := guard.Events(secret, b.handle)
		event := mention(fmt.Sprint("Ev-", result))
		first := make(chan *httptest.ResponseRecorder)
		go func() { first <- post(handler, event) }()
		<-b.entered
		for _, retry := range []string{"1", "2"} {
			refused := post(handler, event, "X-Slack-Retry-Num", retry)
			status(t, "retry "+retry, refused, http.StatusServiceUnavailable)
			if refused.Header().Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
		}
		status(t, "the last retry", post(handler, event, "X-Slack-Retry-Num", "3"), http.StatusOK)
		b.leave <- result
		if result == nil {
			status(t, "the first", <-first, http.StatusOK)
			b.join(t, guard)
			b.ran(t, 1)
		} else {
			status(t, "the first", <-first, http.StatusServiceUnavailable)
			<-b.entered
			b.leave <- nil
			b.join(t, guard)
			b.ran(t, 2)
		}
	}
}

func TestTheLastRetryWaitsForTheServer(t *testing.T) {
	gate, server := oncegatetest.Start(t)
	server.Kill()
	b := newBot()
	guard := slackgate.New(gate)
	handler := guard.Events(secret, b.handle)
	status(t, "unavailable", post(handler, mention("Ev1"), "X-Slack-Retry-Num", "3"), http.StatusOK)
	server.Start()
	b.leave <- nil
	b.join(t, guard)
	b.ran(t, 1)
}

// After a loss by force, the event is free when its TTL has ended.
var shortTurns = slackgate.Turn(oncegate.TTL(5 * time.Second))

// losing makes a handler whose first run ends by its loss. It reports the beginning of each run.
func losing() (handle slackgate.EventHandler, entered <-chan int32) {
	var runs atomic.Int32
	begun := make(chan int32, 10)
	return func(ctx context.Context, _ slackevents.EventsAPIEvent) error {
		run := runs.Add(1)
		begun <- run
		if run > 1 {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}, begun
}

func TestAnAcknowledgedDeliveryIsAskedForAgainAfterALoss(t *testing.T) {
	thread := oncegate.Thread("T1", "C1", "17.5") // of mention
	for name, test := range map[string]struct {
		options []slackgate.Option
		retry   string
		isBusy  bool
		waits   bool // the answer, for the handler
	}{
		"acknowledged first": {options: []slackgate.Option{slackgate.AckFirst()}},
		"of a busy thread":   {isBusy: true},
		"the last retry":     {retry: "3", waits: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, server := oncegatetest.Start(t)
			gate, queued := queueing(server)
			guard := slackgate.New(gate, append(test.options, shortTurns)...)
			handle, entered := losing()
			handler := guard.Events(secret, handle)
			lease, err := server.Gate().Lease(t.Context(), thread)
			if err != nil {
				t.Fatal(err)
			}
			if !test.isBusy {
				lease.Close()
			}
			answer := make(chan *httptest.ResponseRecorder, 1)
			go func() { answer <- post(handler, mention("Ev1"), "X-Slack-Retry-Num", test.retry) }()
			if test.isBusy {
				<-queued
				lease.Close()
			}
			<-entered
			if !test.waits {
				status(t, "before the loss", <-answer, http.StatusOK)
			}
			server.Lose(thread)
			if test.waits {
				status(t, "after the loss", <-answer, http.StatusOK)
			}
			<-entered
			newBot().join(t, guard)
			handler = slackgate.New(gate).Events(secret, handle)
			status(t, "a duplicate", post(handler, mention("Ev1"), "X-Slack-Retry-Num", "1"), http.StatusOK)
			if len(entered) != 0 {
				t.Error("a third run")
			}
		})
	}
}

func TestAnAcknowledgedDeliveryIsAskedForAgainIfItsEndHasNoAnswer(t *testing.T) {
	t.Parallel()
	_, server := oncegatetest.Start(t)
	ended := make(chan string, 10)
	gate := server.Gate(oncegate.WithHooks(oncegate.Hooks{OnEnd: func(outcome string) { ended <- outcome }}))
	b := newBot()
	guard := slackgate.New(gate, slackgate.AckFirst(), shortTurns)
	status(t, "the first", post(guard.Events(secret, b.handle), mention("Ev1")), http.StatusOK)
	<-b.entered
	server.Kill()
	b.leave <- nil
	if outcome := <-ended; outcome != "UNKNOWN" {
		t.Errorf("the first end is %s", outcome)
	}
	server.Start()
	b.leave <- nil
	b.join(t, guard)
	b.ran(t, 2)
	if outcome := <-ended; outcome != "SUCCEEDED" {
		t.Errorf("the second end is %s", outcome)
	}
}

func TestAnAcknowledgedDeliveryThatIsDropped(t *testing.T) {
	_, server := oncegatetest.Start(t)
	for name, end := range map[string]func(*oncegate.Gate, *bot){
		"closed": func(gate *oncegate.Gate, b *bot) { gate.Close(); b.leave <- nil },
		"failed": func(_ *oncegate.Gate, b *bot) { b.leave <- errors.New("no disk") },
		"panic":  func(_ *oncegate.Gate, b *bot) { b.leave <- errPanic },
	} {
		gate, log := logging(server)
		b := newBot()
		guard := slackgate.New(gate, slackgate.AckFirst())
		status(t, name, post(guard.Events(secret, b.handle), mention("Ev-"+name)), http.StatusOK)
		<-b.entered
		end(gate, b)
		b.join(t, guard)
		b.ran(t, 1)
		log.has(t, "a delivery that is not sent again was not handled", "event=Ev-"+name)
	}
}

func TestAPanicFailsTheTurn(t *testing.T) {
	_, server := oncegatetest.Start(t)
	for name, test := range map[string]struct {
		options []slackgate.Option
		status  int
	}{
		"before the answer": {nil, http.StatusServiceUnavailable},
		"after the answer":  {[]slackgate.Option{slackgate.AckFirst()}, http.StatusOK},
	} {
		gate, log := logging(server)
		b := newBot()
		guard := slackgate.New(gate, test.options...)
		b.leave <- errPanic
		status(t, name, post(guard.Events(secret, b.handle), mention(name)), test.status)
		b.join(t, guard)
		log.has(t, "a bug of the handler", "guard_test.go")
		if seen, err := gate.Seen(t.Context(), oncegate.Slack([]byte(mention(name)))); err != nil || seen.State != "NOT_SEEN" {
			t.Errorf("%s: the event is %s, %v", name, seen.State, err)
		}
	}
}

func TestATurnThatItsHandlerHasEnded(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	for name, test := range map[string]struct {
		end    func(*oncegate.Turn) error
		status int
	}{
		"succeeded": {func(turn *oncegate.Turn) error { return turn.Succeed(1) }, http.StatusOK},
		"rejected":  {func(turn *oncegate.Turn) error { return turn.Reject("no topic") }, http.StatusOK},
		"failed": {func(turn *oncegate.Turn) error { turn.Fail("no disk"); return nil },
			http.StatusServiceUnavailable},
	} {
		handler := slackgate.New(gate).Events(secret, func(ctx context.Context, _ slackevents.EventsAPIEvent) error {
			return test.end(oncegate.TurnOf(ctx))
		})
		status(t, name, post(handler, mention(name)), test.status)
	}
}

func TestWithoutTheServer(t *testing.T) {
	gate, server := oncegatetest.Start(t)
	server.Kill()
	b := newBot()
	handler := slackgate.New(gate).Events(secret, b.handle)
	status(t, "unavailable", post(handler, mention("Ev1")), http.StatusServiceUnavailable)
	b.ran(t, 0)
}

func TestTheRequestURL(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	handler := slackgate.New(gate).Events(secret, newBot().handle)
	asked := post(handler, `{"type": "url_verification", "token": "x", "challenge": "abc"}`)
	if asked.Code != http.StatusOK || asked.Body.String() != "abc" {
		t.Errorf("the challenge: %d %s", asked.Code, asked.Body)
	}
	long := post(handler, strings.Repeat("x", 4<<20+1))
	status(t, "a body that is too long", long, http.StatusRequestEntityTooLarge)
	status(t, "no event", post(handler, "payload=x"), http.StatusBadRequest)
	status(t, "a forged signature", post(handler, mention("Ev1"), "X-Slack-Signature", "v0="+strings.Repeat("0", 64)),
		http.StatusUnauthorized)
}
