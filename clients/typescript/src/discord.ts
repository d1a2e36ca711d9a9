import { type Body, type Delivery, type PayloadOptions, platformDelivery } from "./delivery.js";
import { Platform } from "./gen/oncegate/v1/delivery_pb.js";

/** An interaction, a gateway event or a message of Discord, in Discord's own JSON. */
export function delivery(body: Body, options: PayloadOptions = {}): Delivery {
  return platformDelivery(Platform.DISCORD, {}, body, { redelivers: false, ...options });
}
