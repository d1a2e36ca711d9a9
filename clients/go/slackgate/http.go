package slackgate

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/slack-go/slack"
	"github.com/slack-go/slack/slackevents"

	"github.com/oncegate/oncegate/clients/go/oncegate"
)

// maxBody is more than Slack sends.
const maxBody = 4 << 20

// An EventHandler handles an event of the Events API.
type EventHandler func(ctx context.Context, event slackevents.EventsAPIEvent) error

// Events is the request URL of the Events API: it verifies the signature, answers url_verification, and runs
// the handler in its event's turn. The handler's context does not end with the request, which Slack gives up
// after 3 s.
func (g *Guard) Events(signingSecret string, handler EventHandler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		var tooLong *http.MaxBytesError
		switch {
		case errors.As(err, &tooLong):
			http.Error(w, "the body is too long", http.StatusRequestEntityTooLarge)
			return
		case err != nil:
			http.Error(w, "the body cannot be read", http.StatusBadRequest)
			return
		case !isSigned(r.Header, body, signingSecret):
			http.Error(w, "the signature is not that of Slack", http.StatusUnauthorized)
			return
		}
		event, err := slackevents.ParseEvent(body, slackevents.OptionNoVerifyToken())
		if err != nil {
			http.Error(w, "this is no event", http.StatusBadRequest)
			return
		}
		if event.Type == slackevents.URLVerification {
			answerChallenge(w, body)
			return
		}
		d := oncegate.Slack(body)
		retry, _ := strconv.Atoi(r.Header.Get("X-Slack-Retry-Num")) // 0 for the first delivery
		g.run(context.WithoutCancel(r.Context()), &delivered{
			Delivery:  d,
			name:      nameOf(body, ""),
			canRefuse: !d.SentOnce && retry < lastRetry,
			handle:    func(ctx context.Context) error { return handler(ctx, event) },
			ack:       func() { w.WriteHeader(http.StatusOK) },
			refuse: func(after time.Duration) {
				w.Header().Set("Retry-After", strconv.Itoa(int(max(1, math.Ceil(after.Seconds())))))
				w.WriteHeader(http.StatusServiceUnavailable)
			},
		})
	})
}

func isSigned(header http.Header, body []byte, secret string) bool {
	verifier, err := slack.NewSecretsVerifier(header, secret)
	if err != nil {
		return false
	}
	_, err = verifier.Write(body)
	return err == nil && verifier.Ensure() == nil
}

func answerChallenge(w http.ResponseWriter, body []byte) {
	var asked slackevents.ChallengeResponse
	if json.Unmarshal(body, &asked) != nil {
		http.Error(w, "there is no challenge", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = io.WriteString(w, asked.Challenge)
}
