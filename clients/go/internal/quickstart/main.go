package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/oncegate/oncegate/clients/go/oncegate"
)

func main() {
	gate, err := oncegate.New(oncegate.WithConsumer("answer-bot")) // ONCEGATE_SERVER, or 127.0.0.1:7411
	if err != nil {
		log.Panic(err)
	}
	defer gate.Close()
	out, err := oncegate.Run(context.Background(), gate, oncegate.Slack([]byte(os.Args[1])), answer)
	if err != nil {
		log.Panic(err)
	}
	fmt.Println(out.Kind, out.Value)
}

func answer(ctx context.Context, turn *oncegate.Turn) (string, error) { // ctx ends if the turn is lost
	return fmt.Sprint("an answer, with fence ", turn.Fence()), nil // an error: the next delivery gets the event
}
