package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/oncegate/oncegate/clients/go/oncegatetest"
)

// A slackAPI is Slack's side: calls of a bot, and a connection of Socket Mode. It does not answer
// assistant.threads.setStatus, with which the bot's handler begins, before release.
type slackAPI struct {
	statuses  chan struct{}
	release   chan struct{}
	answers   chan string
	connected chan *websocket.Conn
	cancel    context.CancelFunc
	ended     chan error
}

func startBot(t *testing.T, environment map[string]string) *slackAPI {
	slack := &slackAPI{
		statuses: make(chan struct{}, 10), release: make(chan struct{}), answers: make(chan string, 10),
		connected: make(chan *websocket.Conn, 1), ended: make(chan error, 1),
	}
	mux := http.NewServeMux()
	api := httptest.NewServer(mux)
	t.Cleanup(api.Close)
	mux.HandleFunc("POST /assistant.threads.setStatus", func(w http.ResponseWriter, _ *http.Request) {
		slack.statuses <- struct{}{}
		<-slack.release
		_, _ = fmt.Fprint(w, `{"ok": true}`)
	})
	mux.HandleFunc("POST /chat.postMessage", func(w http.ResponseWriter, r *http.Request) {
		slack.answers <- r.FormValue("text")
		_, _ = fmt.Fprint(w, `{"ok": true, "channel": "C1", "ts": "18.5"}`)
	})
	mux.HandleFunc("POST /apps.connections.open", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"ok": true, "url": "ws%s/link"}`, strings.TrimPrefix(api.URL, "http"))
	})
	upgrader := &websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	mux.HandleFunc("GET /link", func(w http.ResponseWriter, r *http.Request) {
		if conn, err := upgrader.Upgrade(w, r, nil); err == nil {
			slack.connected <- conn
		}
	})
	_, server := oncegatetest.Start(t)
	for name, value := range map[string]string{
		"ONCEGATE_SERVER": server.Address(), "SLACK_API_URL": api.URL + "/", "SLACK_BOT_TOKEN": "xoxb-x",
		"SLACK_SIGNING_SECRET": "a secret", "SLACK_APP_TOKEN": "", "GUARD": "", "THINK_SECONDS": "0",
	} {
		t.Setenv(name, value)
	}
	for name, value := range environment {
		t.Setenv(name, value)
	}
	ctx, cancel := context.WithCancel(t.Context())
	slack.cancel = cancel
	go func() { slack.ended <- run(ctx) }()
	return slack
}

// stop stops the bot while its first handler runs, and another event waits for it.
func (s *slackAPI) stop() error {
	s.cancel()
	close(s.release)
	return <-s.ended
}

// mention is a message in one thread.
func mention(text string) string {
	return fmt.Sprintf(`{"team_id": "T1", "api_app_id": "A1", "type": "event_callback", "event_id": %q,
		"event": {"type": "app_mention", "channel": "C1", "user": "U1", "text": "<@U0> %[1]s", "ts": "%d.000100",
		"thread_ts": "17.5"}}`, text, time.Now().UnixNano())
}

// hasAnswered: both messages are answered, the one that runs first.
func (s *slackAPI) hasAnswered(t *testing.T, stopped error) {
	t.Helper()
	close(s.answers)
	if answers := slices.Collect(func(yield func(string) bool) {
		for answer := range s.answers {
			yield(answer)
		}
	}); stopped != nil || !slices.Equal(answers, []string{"You said: first", "You said: second"}) {
		t.Errorf("it stopped with %v, and has answered %q", stopped, answers)
	}
}

func freeAddress(t *testing.T) string {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer free.Close()
	return free.Addr().String()
}

// listens waits until the bot does.
func (s *slackAPI) listens(t *testing.T, address string) {
	for {
		if conn, err := net.Dial("tcp", address); err == nil {
			_ = conn.Close()
			return
		}
		select {
		case err := <-s.ended:
			t.Fatalf("the bot has ended: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func post(address, body string) (int, error) {
	stamp := strconv.FormatInt(time.Now().Unix(), 10)
	mac := hmac.New(sha256.New, []byte("a secret"))
	mac.Write([]byte("v0:" + stamp + ":" + body))
	request, err := http.NewRequest("POST", "http://"+address+"/slack/events", strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	request.Header.Set("X-Slack-Request-Timestamp", stamp)
	request.Header.Set("X-Slack-Signature", "v0="+hex.EncodeToString(mac.Sum(nil)))
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	return response.StatusCode, response.Body.Close()
}

func TestABotThatIsStoppedEndsItsEvents(t *testing.T) {
	address := freeAddress(t)
	_, port, _ := net.SplitHostPort(address)
	slack := startBot(t, map[string]string{"PORT": port})
	slack.listens(t, address)
	first := make(chan int)
	go func() {
		status, _ := post(address, mention("first"))
		first <- status
	}()
	<-slack.statuses
	if status, err := post(address, mention("second")); status != http.StatusOK {
		t.Errorf("a busy thread: %d, %v", status, err)
	}
	stopped := slack.stop()
	if status := <-first; status != http.StatusOK {
		t.Errorf("the one that runs: %d", status)
	}
	slack.hasAnswered(t, stopped)
}

func TestABotThatIsStoppedKeepsItsSocket(t *testing.T) {
	slack := startBot(t, map[string]string{"SLACK_APP_TOKEN": "xapp-x"})
	conn := <-slack.connected
	defer conn.Close()
	send := func(name string) {
		envelope := fmt.Sprintf(`{"type": "events_api", "envelope_id": %q, "payload": %s}`, name, mention(name))
		if err := conn.WriteMessage(websocket.TextMessage, []byte(envelope)); err != nil {
			t.Fatal(err)
		}
	}
	acknowledged := func(name string) {
		if _, message, err := conn.ReadMessage(); err != nil || !strings.Contains(string(message), name) {
			t.Errorf("%s, %v instead of an acknowledgement of the %s", message, err, name)
		}
	}
	send("first")
	<-slack.statuses
	send("second")
	acknowledged("second")
	stopped := slack.stop()
	acknowledged("first")
	slack.hasAnswered(t, stopped)
}
