package slackgate_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
	"github.com/slack-go/slack"
	"github.com/slack-go/slack/slackevents"
	"github.com/slack-go/slack/socketmode"

	"github.com/oncegate/oncegate/clients/go/slackgate"
)

// A fakeSlack is Slack's side of Socket Mode: it sends envelopes over a websocket, and reads what is acknowledged.
type fakeSlack struct {
	t      *testing.T
	client *socketmode.Client
	opened chan *websocket.Conn
	conn   *websocket.Conn
	// returned has the envelopes whose guarded handler has returned.
	returned chan string
	flushes  int
}

// connect makes a bot whose mentions and buttons are guarded, and connects it.
func connect(t *testing.T, guard *slackgate.Guard, handler slackgate.SocketHandler) *fakeSlack {
	s := &fakeSlack{t: t, opened: make(chan *websocket.Conn, 10), returned: make(chan string, 100)}
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	mux.HandleFunc("POST /apps.connections.open", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"ok": true, "url": "ws%s/link"}`, strings.TrimPrefix(server.URL, "http"))
	})
	upgrader := &websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }} // it is api.slack.com
	mux.HandleFunc("GET /link", func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		s.opened <- conn
	})
	quiet := log.New(io.Discard, "", 0)
	api := slack.New("xoxb-x", slack.OptionAppLevelToken("xapp-x"), slack.OptionAPIURL(server.URL+"/"))
	s.client = socketmode.New(api, socketmode.OptionLog(quiet))
	guarded := guard.Socket(handler)
	handle := func(event *socketmode.Event, client *socketmode.Client) {
		guarded(event, client)
		s.returned <- event.Request.EnvelopeID
	}
	handlers := socketmode.NewSocketmodeHandler(s.client)
	handlers.HandleEvents(slackevents.AppMention, handle)
	handlers.HandleInteractionBlockAction("approve", handle)
	handlers.HandleDefault(func(*socketmode.Event, *socketmode.Client) {})
	ended := make(chan error)
	go func() { ended <- handlers.RunEventLoopContext(t.Context()) }()
	t.Cleanup(func() { <-ended }) // the context ends before
	s.accept()
	return s
}

// accept waits for the connection of the bot.
func (s *fakeSlack) accept() {
	s.conn = <-s.opened
	s.t.Cleanup(func() { _ = s.conn.Close() })
	s.write(`{"type": "hello", "num_connections": 1}`)
}

func (s *fakeSlack) write(message string) {
	s.t.Helper()
	if err := s.conn.WriteMessage(websocket.TextMessage, []byte(message)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *fakeSlack) sendEvent(envelope, event string, retry int) {
	s.t.Helper()
	s.write(fmt.Sprintf(`{"type": "events_api", "envelope_id": %q, "retry_attempt": %d, "payload": %s}`,
		envelope, retry, event))
}

// click is a button of a message in the thread of [mention].
func (s *fakeSlack) click(envelope, value string) {
	s.t.Helper()
	s.write(fmt.Sprintf(`{"type": "interactive", "envelope_id": %q, "payload": {"type": "block_actions",
		"team": {"id": "T1"}, "user": {"id": "U1", "team_id": "T1"}, "api_app_id": "A1", "trigger_id": "1.2.a",
		"container": {"type": "message", "message_ts": "18.5", "channel_id": "C1"}, "channel": {"id": "C1"},
		"message": {"ts": "18.5", "thread_ts": "17.5"}, "actions": [{"type": "button", "action_id": "approve",
		"block_id": "b1", "value": %q, "action_ts": "19.5"}]}}`, envelope, value))
}

// done waits until the handler of an envelope has returned.
func (s *fakeSlack) done(envelope string) {
	s.t.Helper()
	if returned := <-s.returned; returned != envelope {
		s.t.Errorf("%s is done, expected %s", returned, envelope)
	}
}

// acknowledged returns the envelopes that were acknowledged since it was called before, in order.
func (s *fakeSlack) acknowledged() []string {
	s.t.Helper()
	s.flushes++
	last := fmt.Sprintf("flush-%d", s.flushes) // comes after those that were acknowledged before
	if err := s.client.AckCtx(s.t.Context(), last, nil); err != nil {
		s.t.Fatal(err)
	}
	var envelopes []string
	for {
		var response struct {
			EnvelopeID string `json:"envelope_id"`
		}
		_, message, err := s.conn.ReadMessage()
		if err == nil {
			err = json.Unmarshal(message, &response)
		}
		if err != nil {
			s.t.Fatal(err)
		}
		if response.EnvelopeID == last {
			return envelopes
		}
		envelopes = append(envelopes, response.EnvelopeID)
	}
}
