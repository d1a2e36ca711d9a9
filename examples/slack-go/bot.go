// A Slack bot that answers every mention in its thread once, also over redelivery and crashes. A crash after
// the post may repeat it. Over Socket Mode if SLACK_APP_TOKEN is set, otherwise over HTTP on PORT.
package main

import (
	"cmp"
	"context"
	"log"
	"net/http"
	"os"
	"strings"
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

func main() {
	think, err := time.ParseDuration(cmp.Or(os.Getenv("THINK_SECONDS"), "5") + "s")
	if err != nil {
		log.Fatal(err)
	}
	b := &bot{think: think, api: slack.New(os.Getenv("SLACK_BOT_TOKEN"),
		slack.OptionAPIURL(cmp.Or(os.Getenv("SLACK_API_URL"), slack.APIURL)),
		slack.OptionAppLevelToken(os.Getenv("SLACK_APP_TOKEN")))}
	gate, err := oncegate.New()
	if err != nil {
		log.Fatal(err)
	}
	defer gate.Close()
	guard := slackgate.New(gate)

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
		log.Fatal(handler.RunEventLoop())
	}
	events := guard.Events(os.Getenv("SLACK_SIGNING_SECRET"), b.answer)
	if os.Getenv("GUARD") == "off" {
		events = http.HandlerFunc(b.unguardedHTTP)
	}
	http.Handle("POST /slack/events", events)
	log.Fatal(http.ListenAndServe(":"+cmp.Or(os.Getenv("PORT"), "3000"), nil))
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
