"""Messages that a gateway did not expect, as old clients write them.

odd.py odd URL QUEUE      publishes messages whose properties are no UTF-8, one for each place, and one with headers without bottom
odd.py stream URL QUEUE   declares a stream queue
"""

import sys

import pika

sys.setrecursionlimit(100_000)
verb, url, queue = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()

BAD = b"\xff\xfe\x01"


def nested(depth):
    table = {}
    for _ in range(depth):
        table = {"t": table}
    return table


def publish(body, exchange="", routing_key=queue, **properties):
    properties = pika.BasicProperties(delivery_mode=2, **properties)
    channel.basic_publish(exchange, routing_key, body, properties)


if verb == "odd":
    channel.confirm_delivery()
    publish(b"correlation_id", correlation_id=BAD)
    publish(b"content_type", content_type=BAD)
    publish(b"content_encoding", content_encoding=BAD)
    publish(b"type", type=BAD)
    publish(b"app_id", app_id=BAD)
    publish(b"message_id", message_id=BAD)
    publish(b"reply_to", reply_to=BAD)
    publish(b"header", headers={BAD: "value"})
    publish(b"header in a header", headers={"outer": {BAD: "value"}})
    publish(b"header's value", headers={"name": BAD})
    # A binding without a key to speak of lets every key through.
    exchange = queue + "-fanout"
    channel.exchange_declare(exchange, "fanout", auto_delete=True)
    channel.queue_bind(queue, exchange)
    publish(b"routing_key", exchange=exchange, routing_key=BAD)
    publish(b"without bottom", headers=nested(4_000))
else:
    channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "stream"})

connection.close()
