// A Slack bot that answers every mention in its thread once, also over redelivery and crashes. A crash after
// the post may repeat it. Over Socket Mode if SLACK_APP_TOKEN is set, otherwise over HTTP on PORT.
package main

import (
	"cmp"
	"context"
	"errors"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/oncegate/oncegate/clients/go/oncegate"
	"github.com/oncegate/oncegate/clients/go/slackgate"
	"github.com/slack-go/slack"
	"github.com/slack-go/slack/slackevents"
	"github.com/slack-go/slack/socketmode"
)

// A bot with its connection to Slack.
type bot struct {
	api   *slack.Client
	think time.Duration
}

// drainTime is less than what Kubernetes and systemd wait for after SIGTERM: 30 s and 90 s.
const drainTime = 25 * time.Second

func main() {
	stopped, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(stopped, stop) // a second signal ends the process at once
	if err := run(stopped); err != nil {
		log.Fatal(err)
	}
}

// run serves until stopped ends. Then it takes no new events, and ends those that it has.
func run(stopped context.Context) error {
	think, err := time.ParseDuration(cmp.Or(os.Getenv("THINK_SECONDS"), "5") + "s")
	if err != nil {
		return err
	}
	b := &bot{think: think, api: slack.New(os.Getenv("SLACK_BOT_TOKEN"),
		slack.OptionAPIURL(cmp.Or(os.Getenv("SLACK_API_URL"), slack.APIURL)),
		slack.OptionAppLevelToken(os.Getenv("SLACK_APP_TOKEN")))}
	gate, err := oncegate.New()
	if err != nil {
		return err
	}
	defer gate.Close()
	guard := slackgate.New(gate)
	drain := func(limited context.Context) {
		// Also those that wait for their thread: Slack does not deliver them again.
		if err := errors.Join(guard.Join(limited), gate.Drain(limited)); err != nil {
			log.Print("some events have not ended: ", err)
		}
	}

	if os.Getenv("SLACK_APP_TOKEN") != "" {
		handler := socketmode.NewSocketmodeHandler(socketmode.New(b.api))
		mention := guard.Socket(func(ctx context.Context, event *socketmode.Event, _ *socketmode.Client) error {
			return b.answer(ctx, event.Data.(slackevents.EventsAPIEvent))
		})
		if os.Getenv("GUARD") == "off" { // shows what Slack's redelivery does to this bot
			mention = b.unguarded
		}
		handler.HandleEvents(slackevents.AppMention, mention)
		handler.HandleDefault(func(*socketmode.Event, *socketmode.Client) {})
		return serveSocket(stopped, handler, drain)
	}
	events := guard.Events(os.Getenv("SLACK_SIGNING_SECRET"), b.answer)
	if os.Getenv("GUARD") == "off" {
		events = http.HandlerFunc(b.unguardedHTTP)
	}
	mux := http.NewServeMux()
	mux.Handle("POST /slack/events", events)
	server := &http.Server{Addr: ":" + cmp.Or(os.Getenv("PORT"), "3000"), Handler: mux}
	return serveHTTP(stopped, server, drain)
}

// serveSocket keeps the connection while the bot drains: acknowledgements need it. Slack delivers events that are
// not acknowledged again, to another process.
func serveSocket(stopped context.Context, handler *socketmode.SocketmodeHandler, drain func(context.Context)) error {
	connection, disconnect := context.WithCancel(context.Background())
	defer disconnect()
	ended := make(chan error, 1)
	go func() { ended <- handler.Client.RunContext(connection) }()
	for {
		select {
		case event := <-handler.Client.Events:
			handler.DispatchEvent(event)
		case err := <-ended:
			return err
		case <-stopped.Done():
			limited, cancel := context.WithTimeout(context.Background(), drainTime)
			defer cancel()
			drain(limited)
			disconnect()
			<-ended
			return nil
		}
	}
}

func serveHTTP(stopped context.Context, server *http.Server, drain func(context.Context)) error {
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-stopped.Done():
	}
	limited, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	err := server.Shutdown(limited) // waits for the requests that it has
	drain(limited)
	return err
}

// answer handles a mention. ctx ends if its turn is lost.
func (b *bot) answer(ctx context.Context, event slackevents.EventsAPIEvent) error {
	mention, ok := event.InnerEvent.Data.(*slackevents.AppMentionEvent)
	if !ok {
		return nil
	}
	thread := cmp.Or(mention.ThreadTimeStamp, mention.TimeStamp)
	status := slack.AssistantThreadsSetStatusParameters{
		ChannelID: mention.Channel, ThreadTS: thread, Status: "is thinking…",
	}
	if err := b.api.SetAssistantThreadsStatusContext(ctx, status); err != nil {
		return err
	}
	select { // A language model would do its work here.
	case <-time.After(b.think):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if turn := oncegate.TurnOf(ctx); turn != nil {
		if err := turn.Check(); err != nil {
			return err
		}
	}
	_, question, _ := strings.Cut(mention.Text, "> ")
	_, _, err := b.api.PostMessageContext(ctx, mention.Channel,
		slack.MsgOptionText("You said: "+question, false), slack.MsgOptionTS(thread))
	return err
}
