package main

import (
	"context"
	"io"
	"log"
	"net/http"

	"github.com/slack-go/slack/slackevents"
	"github.com/slack-go/slack/socketmode"
)

// unguarded acknowledges after the handler, as the guard does, but handles each delivery.
func (b *bot) unguarded(event *socketmode.Event, client *socketmode.Client) {
	if err := b.answer(context.Background(), event.Data.(slackevents.EventsAPIEvent)); err != nil {
		log.Print(err)
		return
	}
	if err := client.Ack(*event.Request); err != nil {
		log.Print(err)
	}
}

func (b *bot) unguardedHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, "the body cannot be read", http.StatusBadRequest)
		return
	}
	event, err := slackevents.ParseEvent(body, slackevents.OptionNoVerifyToken())
	if err == nil {
		err = b.answer(context.WithoutCancel(r.Context()), event)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}
