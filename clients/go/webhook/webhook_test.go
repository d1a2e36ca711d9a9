package webhook_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"

	"github.com/oncegate/oncegate/clients/go/oncegate"
	"github.com/oncegate/oncegate/clients/go/oncegatetest"
	"github.com/oncegate/oncegate/clients/go/webhook"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A site is a server of HTTP whose handler is guarded.
type site struct {
	*httptest.Server
	t    *testing.T
	gate *oncegate.Gate
	once *oncegatetest.Server
}

func newSite(t *testing.T, handler http.HandlerFunc, options ...oncegate.TurnOption) *site {
	gate, server := oncegatetest.Start(t)
	s := &site{t: t, gate: gate, once: server}
	s.Server = httptest.NewServer(webhook.Guard(gate, oncegate.GitHub, options...)(handler))
	t.Cleanup(s.Close)
	return s
}

const issue = `{"action": "opened", "issue": {"number": %d}, "sender": {"id": 7},
	"repository": {"id": 1, "full_name": "octo/repo", "owner": {"id": 21, "login": "octo"}}}`

func (s *site) deliver(id string, issueNumber int) *http.Response {
	s.t.Helper()
	body := fmt.Sprintf(issue, issueNumber)
	request, err := http.NewRequestWithContext(s.t.Context(), "POST", s.URL, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("X-GitHub-Delivery", id)
	response, err := s.Client().Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	content, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	response.Body.Close()
	response.Body = io.NopCloser(bytes.NewReader(content))
	return response
}

func text(response *http.Response) string {
	content, _ := io.ReadAll(response.Body)
	return fmt.Sprintf("%d %s", response.StatusCode, content)
}

func TestADuplicateGetsTheSameResponse(t *testing.T) {
	calls := 0
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		calls++
		body, _ := io.ReadAll(r.Body)
		if oncegate.TurnOf(r.Context()).Fence() == 0 || !bytes.Contains(body, []byte("octo/repo")) {
			t.Error("the handler has no turn or no body")
		}
		w.Header().Set("Location", "/issues/1")
		w.Header().Set("X-Request-Id", "of this exchange")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, "created")
	})
	first, second := s.deliver("d1", 1), s.deliver("d1", 1)
	if got := text(first); got != "201 created" || first.Header.Get("X-Request-Id") == "" {
		t.Errorf("the first is %s, %v", got, first.Header)
	}
	if got := text(second); got != "201 created" || second.Header.Get("Location") != "/issues/1" {
		t.Errorf("the second is %s, %v", got, second.Header)
	}
	if calls != 1 || second.Header.Get("X-Request-Id") != "" {
		t.Errorf("%d calls, %v", calls, second.Header)
	}
}

func TestALongResponseIsReplayedByItsStatus(t *testing.T) {
	s := newSite(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, strings.Repeat("x", 50_000))
	})
	if got := len(text(s.deliver("d1", 1))); got != len("202 ")+50_000 {
		t.Errorf("the first has %d bytes", got)
	}
	if got := text(s.deliver("d1", 1)); got != "202 " {
		t.Errorf("the second is %.40s", got)
	}
}

func TestAFailureIsHandledAgain(t *testing.T) {
	calls := 0
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		calls++
		if calls == 1 {
			http.Error(w, "no disk", http.StatusInternalServerError)
		} else if attempt := oncegate.TurnOf(r.Context()).Attempt(); attempt != 2 {
			t.Errorf("attempt %d", attempt)
		}
	})
	if got := text(s.deliver("d1", 1)); got != "500 no disk\n" {
		t.Errorf("the first is %s", got)
	}
	if got := text(s.deliver("d1", 1)); got != "200 " || calls != 2 {
		t.Errorf("the second is %s, %d calls", got, calls)
	}
}

func TestAPanicFailsTheTurn(t *testing.T) {
	calls := 0
	s := newSite(t, func(http.ResponseWriter, *http.Request) {
		if calls++; calls == 1 {
			panic(http.ErrAbortHandler)
		}
	})
	request, _ := http.NewRequest("POST", s.URL, strings.NewReader(fmt.Sprintf(issue, 1)))
	request.Header.Set("X-GitHub-Delivery", "d1")
	if response, err := s.Client().Do(request); err == nil {
		t.Errorf("the first is %s", text(response))
	}
	if got := text(s.deliver("d1", 1)); got != "200 " || calls != 2 {
		t.Errorf("the second is %s, %d calls", got, calls)
	}
}

func TestOthersAreAskedToComeAgain(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := newSite(t, func(http.ResponseWriter, *http.Request) {
		entered <- struct{}{}
		<-leave
	}, oncegate.Wait(0))
	done := make(chan string)
	go func() { done <- text(s.deliver("d1", 1)) }()
	<-entered
	for name, response := range map[string]*http.Response{
		"in progress": s.deliver("d1", 1), "busy": s.deliver("d2", 1),
	} {
		if got := text(response); got != "503 retry later" || response.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %s, %v", name, got, response.Header)
		}
	}
	close(leave)
	if got := <-done; got != "200 " {
		t.Errorf("the holder got %s", got)
	}
}

func TestWithoutTheServer(t *testing.T) {
	calls := 0
	handler := func(http.ResponseWriter, *http.Request) { calls++ }
	s := newSite(t, handler, oncegate.Patience(300*time.Millisecond))
	s.once.Kill()
	if got := text(s.deliver("d1", 1)); got != "503 retry later" || calls != 0 {
		t.Errorf("it is %s after %d calls", got, calls)
	}
}

func TestTheHandlerOutlivesItsClient(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	client, disconnect := context.WithCancel(t.Context())
	calls := 0
	guarded := webhook.Guard(gate, oncegate.GitHub)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		calls++
		disconnect()
		<-client.Done()
		if err := r.Context().Err(); err != nil {
			t.Errorf("the handler's context: %v", err)
		}
	}))
	serve(guarded, newRequest(strings.NewReader(fmt.Sprintf(issue, 1))).WithContext(client), "d1")
	redelivery := serve(guarded, newRequest(strings.NewReader(fmt.Sprintf(issue, 1))), "d1")
	if redelivery.Code != http.StatusOK || calls != 1 {
		t.Errorf("the redelivery gets %d after %d calls", redelivery.Code, calls)
	}
}

func TestByBody(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	calls := 0
	handler := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls++ })
	guarded := webhook.Guard(gate, webhook.ByBody(oncegate.Stripe))(handler)
	const event = `{"id": "evt_1", "object": "event", "type": "charge.succeeded", "account": "acct_1",
		"data": {"object": {"id": "ch_1"}}}`
	for range 2 {
		recorder := httptest.NewRecorder()
		guarded.ServeHTTP(recorder, httptest.NewRequest("POST", "/", strings.NewReader(event)))
		if recorder.Code != http.StatusOK {
			t.Errorf("%d %s", recorder.Code, recorder.Body)
		}
	}
	if calls != 1 {
		t.Errorf("%d calls", calls)
	}
}

func serve(handler http.Handler, request *http.Request, id string) *httptest.ResponseRecorder {
	request.Header.Set("X-GitHub-Delivery", id)
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, request)
	return recorder
}

func newRequest(body io.Reader) *http.Request { return httptest.NewRequest("POST", "/", body) }

func TestABodyThatIsTooLong(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	guarded := webhook.Guard(gate, oncegate.GitHub)(http.NotFoundHandler())
	zeros, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer zeros.Close()
	for body, status := range map[io.Reader]int{
		io.LimitReader(zeros, 32<<20+1):       http.StatusRequestEntityTooLarge,
		iotest.ErrReader(io.ErrUnexpectedEOF): http.StatusBadRequest,
	} {
		if recorder := serve(guarded, newRequest(body), "d1"); recorder.Code != status {
			t.Errorf("%d %s, expected %d", recorder.Code, recorder.Body, status)
		}
	}
}

// The client may go at any time, also between the grant and the handler.
func TestAClientThatGoesAtTheGrant(t *testing.T) {
	_, server := oncegatetest.Start(t)
	goes := func() {}
	gate := server.Gate(oncegate.WithHooks(oncegate.Hooks{OnBegin: func(oncegate.Delivery) { goes() }}))
	calls := 0
	guarded := webhook.Guard(gate, oncegate.GitHub)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if calls++; r.Context().Err() != nil {
			t.Errorf("the handler begins with a context that has ended: %v", r.Context().Err())
		}
	}))
	client, cancel := context.WithCancel(t.Context())
	goes = cancel
	body := fmt.Sprintf(issue, 1)
	if recorder := serve(guarded, newRequest(strings.NewReader(body)).WithContext(client), "d1"); calls != 0 {
		t.Errorf("%d %s after %d calls", recorder.Code, recorder.Body, calls)
	}
	if turns := server.Turns(""); len(turns) != 0 {
		t.Errorf("%v", turns)
	}
	if recorder := serve(guarded, newRequest(strings.NewReader(body)), "d1"); recorder.Code != http.StatusOK || calls != 1 {
		t.Errorf("the redelivery gets %d after %d calls", recorder.Code, calls)
	}
}

func TestATurnThatItsHandlerHasEnded(t *testing.T) {
	calls := 0
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		calls++
		if err := oncegate.TurnOf(r.Context()).Reject("no topic"); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusAccepted)
	})
	for _, expected := range []string{"202 ", "200 "} {
		if got := text(s.deliver("d1", 1)); got != expected || calls != 1 {
			t.Errorf("%s after %d calls, expected %s", got, calls, expected)
		}
	}
}

func TestErrorsAreLoggedByTheGate(t *testing.T) {
	var logged strings.Builder
	gate, err := oncegate.New(
		oncegate.WithLogger(slog.New(slog.NewTextHandler(&logged, nil))),
		oncegate.WithServer("127.0.0.1:1"), oncegate.WithTokenFile(filepath.Join(t.TempDir(), "none")))
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	guarded := webhook.Guard(gate, oncegate.GitHub)(http.NotFoundHandler())
	recorder := serve(guarded, newRequest(strings.NewReader(fmt.Sprintf(issue, 1))), "d1")
	if recorder.Code != http.StatusInternalServerError || !strings.Contains(logged.String(), "WithTokenFile") {
		t.Errorf("%d, logged: %s", recorder.Code, &logged)
	}
}
