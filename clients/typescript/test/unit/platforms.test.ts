import { expect, test } from "vitest";
import type { PayloadOptions } from "../../src/delivery.js";
import * as discord from "../../src/discord.js";
import * as github from "../../src/github.js";
import * as slack from "../../src/slack.js";
import * as standardWebhooks from "../../src/standard-webhooks.js";
import * as stripe from "../../src/stripe.js";
import * as teams from "../../src/teams.js";
import * as telegram from "../../src/telegram.js";

const day = 24 * 3_600_000;
const event = { type: "event_callback", event: { type: "message" } };
const team = "T1";

test.each([
  ["discord", (options: PayloadOptions) => discord.delivery({}, options), undefined, false],
  ["github", (options: PayloadOptions) => github.delivery({}, {}, options), 7 * day, false],
  ["slack", (options: PayloadOptions) => slack.delivery(event, options), undefined, true],
  [
    "standard_webhooks",
    (options: PayloadOptions) => standardWebhooks.delivery({}, {}, { ...options, team }),
    7 * day,
    true,
  ],
  ["stripe", (options: PayloadOptions) => stripe.delivery({}, options), 7 * day, true],
  ["teams", (options: PayloadOptions) => teams.delivery({}, options), undefined, true],
  ["telegram", (options: PayloadOptions) => telegram.delivery({}, { ...options, team }), 2 * day, true],
])(
  "a delivery of %s has the defaults of its platform, also for an option that is undefined",
  (kind, make, ttlMs, redelivers) => {
    const ofPlatform = { kind, ttlMs, redelivers };
    expect(make({})).toMatchObject(ofPlatform);
    expect(make({ ttl: undefined, redelivers: undefined })).toMatchObject(ofPlatform);
    expect(make({ ttl: day, redelivers: !redelivers })).toMatchObject({
      kind,
      ttlMs: day,
      redelivers: !redelivers,
    });
  },
);
