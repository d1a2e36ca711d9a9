import { type Body, type Delivery, type PayloadOptions, platformDelivery } from "./delivery.js";
import { Platform } from "./gen/oncegate/v1/delivery_pb.js";

/** An update of Telegram. It does not name its bot: `team` does, such as by the bot's id. */
export function delivery(body: Body, options: PayloadOptions & { team: string }): Delivery {
  return platformDelivery(Platform.TELEGRAM, {}, body, options, { ttl: "48h" });
}
