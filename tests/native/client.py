"""A message as a service with pika writes and reads it.

client.py send URL QUEUE     publishes one with every property and every type of header that pika can write
client.py receive URL QUEUE  takes one and prints it as JSON; its payload in hexadecimal
client.py call URL QUEUE     asks there, waits in a queue that the broker named, and prints the reply
client.py direct URL QUEUE   asks there, waits by direct reply-to, and prints the reply
"""

import json
import sys
import time
from datetime import datetime, timezone
from decimal import Decimal

import pika

verb, url, queue = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()

if verb == "send":
    channel.confirm_delivery()
    properties = pika.BasicProperties(
        content_type="application/octet-stream",
        content_encoding="identity",
        headers={
            "none": None,
            "bool": True,
            "int": -5,
            "large": 2**60,
            "decimal": Decimal("12.34"),
            "negative": Decimal("-1.5"),
            "text": "Grüße",
            "bytes": b"\x00\xff",
            "time": datetime(2026, 2, 3, 4, 5, 6, tzinfo=timezone.utc),
            "list": [1, "two", [False]],
            "table": {"deep": {"deeper": None}},
        },
        delivery_mode=2,
        priority=7,
        correlation_id="correlation",
        reply_to="answers",
        expiration="600000",
        message_id="from-python",
        timestamp=1700000000,
        type="order.created",
        user_id="guest",
        app_id="python",
    )
    channel.basic_publish("", queue, b"\x00\xffpython\r\n", properties, mandatory=True)
elif verb == "call":
    waiting = channel.queue_declare("", exclusive=True).method.queue
    properties = pika.BasicProperties(reply_to=waiting, correlation_id="call-1")
    channel.basic_publish("", queue, b"question", properties, mandatory=True)
    for method, properties, body in channel.consume(waiting, auto_ack=True, inactivity_timeout=30):
        assert method is not None, "no reply came"
        print(properties.correlation_id, body.decode())
        break
elif verb == "direct":
    replies = []
    waiting = "amq.rabbitmq.reply-to"
    channel.basic_consume(waiting, lambda *reply: replies.append(reply), auto_ack=True)
    properties = pika.BasicProperties(reply_to=waiting, correlation_id="call-1")
    channel.basic_publish("", queue, b"question", properties, mandatory=True)
    end = time.monotonic() + 30
    while not replies:
        assert time.monotonic() < end, "no reply came"
        connection.process_data_events(time_limit=1)
    _, _, properties, body = replies[0]
    print(properties.correlation_id, body.decode())
else:
    method, properties, body = channel.basic_get(queue, auto_ack=True)
    message = {name: value for name, value in vars(properties).items() if value is not None}
    print(json.dumps({"payload": body.hex(), **message}))

connection.close()
