package slackgate

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/slack-go/slack/socketmode"

	"github.com/oncegate/oncegate/clients/go/oncegate"
)

// A SocketHandler handles what came over Socket Mode. It need not acknowledge, but may, such as with a
// response for the user.
type SocketHandler func(ctx context.Context, event *socketmode.Event, client *socketmode.Client) error

// Socket guards a handler of Socket Mode, for [socketmode.SocketmodeHandler]. Guard one handler of an event:
// each would be refused while another one runs.
func (g *Guard) Socket(handler SocketHandler) socketmode.SocketmodeHandlerFunc {
	return func(event *socketmode.Event, client *socketmode.Client) {
		request := event.Request
		if request == nil || request.EnvelopeID == "" { // the client's own, such as that it has connected
			err := g.protect(slog.String("type", string(event.Type)), func() error { return handler(context.Background(), event, client) })
			var panicked *panicError
			if err != nil && !errors.As(err, &panicked) {
				g.gate.Logger().Error("a handler of Socket Mode failed", "error", err)
			}
			return
		}
		d := oncegate.Slack(request.Payload)
		g.run(context.Background(), &delivered{
			Delivery:  d,
			name:      nameOf(request.Payload, request.EnvelopeID),
			canRefuse: !d.SentOnce && request.RetryAttempt < lastRetry,
			handle:    func(ctx context.Context) error { return handler(ctx, event, client) },
			ack: func() {
				// Without a connection, the client waits for one.
				ctx, cancel := context.WithTimeout(context.Background(), ackTimeout)
				defer cancel()
				if err := client.AckCtx(ctx, request.EnvelopeID, nil); err != nil {
					g.gate.Logger().Warn("an acknowledgement was not sent; Slack delivers again", "error", err)
				}
			},
			refuse: func(time.Duration) {}, // Slack delivers again what is not acknowledged
		})
	}
}
