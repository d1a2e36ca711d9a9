import { type Body, type Delivery, type PayloadOptions, platformDelivery } from "./delivery.js";
import { Platform } from "./gen/oncegate/v1/delivery_pb.js";

/** An event of Stripe. Your own account's events do not name it: `team` does. */
export function delivery(body: Body, options: PayloadOptions = {}): Delivery {
  return platformDelivery(Platform.STRIPE, {}, body, options, { ttl: "168h" });
}
