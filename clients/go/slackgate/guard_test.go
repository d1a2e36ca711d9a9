package slackgate_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slack-go/slack"
	"github.com/slack-go/slack/slackevents"
	"github.com/slack-go/slack/socketmode"
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

// A bot counts the runs of its handler, which do not end before they may.
type bot struct {
	runs    atomic.Int32
	entered chan string
	leave   chan error
}

func newBot() *bot { return &bot{entered: make(chan string, 10), leave: make(chan error, 10)} }

func (b *bot) handle(ctx context.Context, _ slackevents.EventsAPIEvent) error {
	b.runs.Add(1)
	b.entered <- oncegate.TurnOf(ctx).ID()
	return <-b.leave
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
	if b.runs.Load() != 1 {
		t.Errorf("%d runs", b.runs.Load())
	}
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
	if b.runs.Load() != 2 {
		t.Errorf("%d runs", b.runs.Load())
	}
}

func TestABusyThreadQueues(t *testing.T) {
	gate, server := oncegatetest.Start(t)
	b := newBot()
	guard := slackgate.New(gate)
	handler := guard.Events(secret, b.handle)
	var first sync.WaitGroup
	first.Go(func() { post(handler, mention("Ev1")) })
	held := <-b.entered
	status(t, "the second", post(handler, mention("Ev2")), http.StatusOK)
	for deadline := time.Now().Add(10 * time.Second); server.Waiting("T1") != 1; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not wait")
		}
	}
	b.leave <- nil
	first.Wait()
	if next := <-b.entered; next == held {
		t.Error("the second has the first one's turn")
	}
	b.leave <- nil
	guard.Join()
	if turns := server.Turns("T1"); len(turns) != 0 || b.runs.Load() != 2 {
		t.Errorf("%d runs, %v", b.runs.Load(), turns)
	}
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
	guard.Join() // or the test hangs
}

func TestWithoutTheServer(t *testing.T) {
	gate, server := oncegatetest.Start(t)
	server.Kill()
	b := newBot()
	handler := slackgate.New(gate).Events(secret, b.handle)
	status(t, "unavailable", post(handler, mention("Ev1")), http.StatusServiceUnavailable)
	if b.runs.Load() != 0 {
		t.Error("it ran")
	}
}

func TestTheRequestURL(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	handler := slackgate.New(gate).Events(secret, newBot().handle)
	asked := post(handler, `{"type": "url_verification", "token": "x", "challenge": "abc"}`)
	if asked.Code != http.StatusOK || asked.Body.String() != "abc" {
		t.Errorf("the challenge: %d %s", asked.Code, asked.Body)
	}
	status(t, "a forged signature", post(handler, mention("Ev1"), "X-Slack-Signature", "v0="+strings.Repeat("0", 64)),
		http.StatusUnauthorized)
}

func TestSocketMode(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	client := socketmode.New(slack.New("xoxb-x", slack.OptionAppLevelToken("xapp-x")))
	handler := socketmode.NewSocketmodeHandler(client)
	ran := make(chan int64, 10)
	handler.HandleEvents(slackevents.AppMention, slackgate.New(gate).Socket(
		func(ctx context.Context, _ *socketmode.Event, _ *socketmode.Client) error {
			ran <- oncegate.TurnOf(ctx).Fence()
			return nil
		}))
	body := []byte(mention("Ev1"))
	parsed, err := slackevents.ParseEvent(body, slackevents.OptionNoVerifyToken())
	if err != nil {
		t.Fatal(err)
	}
	event := socketmode.Event{
		Type: socketmode.EventTypeEventsAPI, Data: parsed,
		Request: &socketmode.Request{Type: "events_api", EnvelopeID: "e1", Payload: body},
	}
	handler.DispatchEvent(event)
	if fence := <-ran; fence == 0 {
		t.Error("there is no turn")
	}
	handler.DispatchEvent(event)
	select {
	case <-ran:
		t.Error("a duplicate ran")
	case <-time.After(500 * time.Millisecond):
	}
}
