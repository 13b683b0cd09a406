"What a careful reader says of replies in any wording, and what must not change it"
import pytest
from hypothesis import given, settings, strategies as st

from ivgr.data.answers import accuracy
from ivgr.data.replies import picks, read_options, read_yes_no

UMBRELLA = "What is the color of the umbrella?\n(A) red\n(B) blue\n(C) green\n(D) yellow"
SOFA = "Which animal sits on the sofa? (A) a cat (B) a dog (C) a parrot"
CUP = "Where is the cup relative to the plate?\n(A) The cup is on the left of the plate.\n(B) The cup is on the right of the plate."
DOG = "Is there a dog in the image?"
CAR = "Is the car red?"
DOOR = "Is the door open?\n(A) Yes\n(B) No"
BUSES = "How many buses are there?"
WINDOWS = "How many windows does the house have?\n(A) 2\n(B) 4\n(C) 6\n(D) 0"
SIGN = "What is written on the sign?\n(A) STOP\n(B) GO\n(C) EXIT\n(D) 42\n(E) The image does not feature the sign."
LAMP = "Is the lamp on or off?"
CHINESE = "伞是什么颜色？\n(A) 红色\n(B) 蓝色\n(C) 绿色"
BLANK = "What does the sign say?\n(A) STOP\n(B) GO\n(C) N/A"
PILLS = "What is it?\n(A) vitamin C\n(B) iron\n(C) zinc\n(D) vitamin A"

CASES = [  # question, truth, replies that say it, replies that do not
    (UMBRELLA, 'C', ['Green, as the umbrella clearly shows', 'ANSWER: C', '「C」', "It's option C."],
     ['C? No.', 'C can be ruled out', 'C seems wrong', 'Is it C?', 'C or none', 'Choices: A, B, C, D', 'The answer is C? No, B.']),
    (BUSES, '4', ['一共有4辆'], ['4 minus 1', 'I count 3, not 4']),
    (UMBRELLA, 'B',
     ['The umbrella held by the woman is blue.', "It's blue.", 'It appears to be blue',
      'The color is blue.', 'B) blue', 'Answer - B', '(B)', '［Ｂ］', 'Ｂ．', '【B】',
      'The answer is \\(B\\).', '\\mathrm{B}', '\\boxed{\\mathrm{B}}', '$\\boxed{\\text{(B) blue}}$',
      '答案为B', '答案：Ｂ。', '应该选B', '我选择B', '因此选B', '选项B', '故选B。', '答えはBです', '正解はBです。', 'Bです', '답은 B입니다',
      '정답: B', 'B번', 'B입니다.', 'The answer is B, since A and C are clearly wrong.',
      'Not A. Not C. It is B.', 'B, not A or C', 'B (not A)', 'A is wrong, so B.', "I'd go with B.",
      "I'll choose option B", 'Final answer: B', 'Final Answer: **B**', '**Final Answer**: B',
      'The correct option is (B).', 'B is right.', 'Option (B) is the correct one.',
      'The best answer is B.', "Answer: A. Wait, that's wrong. Answer: B",
      'First I thought A. Actually, the answer is B.',
      'The answer is A. No wait, I need to correct this. The answer is B.',
      'The umbrella is not red but blue.', 'It is not red, it is blue', 'not red, blue',
      'blue (not green)', 'The umbrella is blue, unlike the green car.', '"blue"', 'Blue umbrella',
      'a blue one', 'The answer is B.\n\nOption A shows another color.', 'So the answer is b', 'B\n',
      'B\n\nBecause the umbrella is blue.', 'blue.', 'The color of the umbrella is blue, so B',
      "The umbrella's color is blue", "I think it's blue", 'the blue one', 'My choice is B',
      'Reasoning: the umbrella is blue.\nAnswer: B', 'The correct choice is B',
      'Therefore, B is correct.'],
     ['Blue or green', 'red and blue', 'B? C?', 'B/C', 'A, B', 'It is A', 'neither B nor C', 'not blue',
      "The umbrella isn't blue.", 'It could be B or D', 'B. green', '(B) red', 'The answer is C. blue',
      'D, not B', 'B is wrong', 'I doubt it is B.', 'The man in blue holds it',
      "I can't tell, maybe blue or red", "I don't know, B or C", 'light bluegreen', 'E',
      'The answer is not B', 'The answer is B or C', 'The answer is B. Or C.',
      'Answer: B. Wait, no. Answer: C', 'The answer is B... no, actually C',
      'If the answer is B, then it would be blue', '不是B', '不选B', 'Bではない', 'B가 아니다', 'anything but B',
      'all except B', 'B is not correct', 'Everything except blue',
      'The umbrella is green, and the sky is blue', '2', 'none',
      'The answer is A. The umbrella is blue.', 'blue-green', 'The umbrella is not blue; it is green.',
      'green rather than blue', 'Instead of B, C', 'B is a common distractor; the answer is C']),
    (SOFA, 'A',
     ['A cat', 'a cat.', 'A cat is sitting on the sofa.', 'The cat sits on the sofa',
      'The answer is a cat', 'The animal on the sofa is a cat.', 'There is a cat on the sofa',
      'I see a cat', 'A', 'A.', '(a)', 'A. a cat', 'Cat'],
     ['A dog', 'A parrot sits on the sofa', 'A cat and a dog', 'A dog, not a cat',
      'There is no cat on the sofa', 'a dog', 'A cat or a parrot']),
    (CUP, 'A',
     ['left', 'The cup is to the left of the plate', 'on the left',
      'A. The cup is on the left of the plate.', 'The cup is on the left of the plate.',
      'It is on the left side of the plate'],
     ['The plate is on the left of the cup', 'right', 'The cup is on the right of the plate',
      'left or right']),
    (DOG, 'yes',
     ['Yes', 'yes!', 'Yes, there is', 'Yes there is', 'There is a dog.', 'The image contains a dog.',
      'A dog is visible in the image.', 'Sure, yes', 'I can see a dog.', 'Yes, a dog is on the bed',
      'Correct', 'YES', 'はい', '네', '对', '有的', 'Si', 'Sí', 'ja', 'Of course, yes',
      'yes, without a doubt', 'Without a doubt, yes.', 'Yes. The dog is not on a leash',
      'Yes, I can see a dog', 'The answer is: **Yes**', '(A) Yes', '$\\boxed{Yes}$', 'There is.',
      "It's a yes", 'Yes (there is a dog)', 'Yes, no doubt'],
     ['No', 'There is no dog', 'There are no dogs in the image', 'maybe', 'Yes and no', 'Not yes',
      'There is a cat', 'There is a dog house', 'No dog', "I don't see a dog", 'I am not sure',
      'It might be a dog', 'Is there a dog?', 'Yes, there is no dog', 'not sure, yes or no',
      'There is nothing', 'Yes, it is not there', 'no, yes', 'A dog could be there',
      'There could be a dog', 'unknown', 'no dogs visible', 'いいえ', '아니요']),
    (DOG, 'no',
     ['no', 'Nope', "No, I can't see a dog", 'No dogs.', "There aren't any dogs.", 'There is not a dog',
      'The image does not show a dog.', "I don't see a dog", 'I see no dog.', 'No such animal',
      'No, there is a cat', 'No, there are only cats', 'nothing', 'Not visible', 'いいえ', '아니요', '没有。',
      '不', 'Definitely not', 'Not at all', 'nein', 'No (there is a cat)', 'No visible dog',
      'No dog can be seen.', 'No dog is present', "The picture doesn't contain any dog"],
     ['No doubt', 'No idea', 'No one knows', 'Yes', 'no or yes', 'not sure',
      'Not only a dog but a cat too', 'There is no doubt that there is a dog', 'No problem, yes',
      'No cat', 'I cannot tell', "It's not impossible", 'not necessarily', 'No, yes',
      'There is no cat but there is a dog', 'No, wait, yes', 'The dog is not on the couch',
      'A dog without a leash', 'Not just one dog', 'no cats, one dog']),
    (CAR, 'yes',
     ['The car is red.', 'Yes, the car is red', 'It is.'],
     ['The car is not red', "It isn't", 'The red is car', 'It is blue', 'The car might be red']),
    (CAR, 'no',
     ['The car is not red.', 'It is not.', "No, it's blue"],
     ['The car is red', 'It is', 'not sure']),
    (DOOR, 'A',
     ['Yes', 'A', 'Yes, it is open', '(A) Yes', 'yes.'],
     ['No', 'B', '(A) No', 'Yes or no', 'Not open']),
    (BUSES, '4',
     ['4', 'four', 'There are 4 buses.', 'There are four buses in the image', 'I count 4 buses.',
      'I can see 4.', 'The answer is 4', '\\boxed{4}', '4 buses', '4辆', '有4辆', '四', '四辆', '4台です',
      '4대입니다', 'The number of buses is 4.', '4 in total', 'It is 4.', 'Total: 4', '4.', '04',
      'four (4)', 'Answer: 2. Let me recheck. Answer: 4', '４', 'There are exactly 4 buses',
      '$\\boxed{\\text{4}}$', 'The total number of buses is four.'],
     ['about 4', '4 or 5', '4-5', 'between 3 and 4', 'at least 4', 'not 4', '3+1', '4 cars and 1 bus',
      'more than 4', '4 cars', 'four hundred', '14', '4.5', '2 buses and 2 cars, 4', 'almost 4', '4%',
      '-4', 'fewer than 4', '4 of 5', '44', '4^2', '4!!5', 'around 4 buses', 'up to 4', '4x']),
    (BUSES, '0',
     ['0', 'zero', 'none', 'No buses', 'There are no buses.', 'There are 0 buses', 'None.'],
     ['no', 'none of them is red', '1', '10', 'There are no cars']),
    (WINDOWS, 'B',
     ['4', 'Four', 'There are four windows.', '4 windows', 'The house has 4 windows.',
      'The answer is 4', 'B', '4.0'],
     ['2 or 4', '14', 'about 4', '2', '-4', '4%', 'not 4', '.4', 'A. 4', '4/6']),
    (WINDOWS, 'D',
     ['none', '0', 'zero', 'There are no windows.', 'No windows'],
     ['none of the above', '6', 'no idea']),
    (SIGN, 'E',
     ['E', 'The image does not feature the sign.', '(E)', 'The sign is not featured, E'],
     ['STOP', 'The image does not feature the sign, so A']),
    (SIGN, 'A',
     ['STOP', 'stop', 'The sign says STOP.', 'It says "STOP"', 'The word on the sign is STOP'],
     ['EXIT', 'STOP or GO', 'not STOP']),
    (LAMP, 'off',
     ['off', 'The lamp is off.', 'It is off', 'Off!', "it's off"],
     ['on', 'on or off', 'not off', 'The lamp is on, not off', 'The lamp is on', 'on, off']),
    (CHINESE, 'C',
     ['绿色', '伞是绿色的', 'C', '答案是C', '绿色。', '是绿色', 'C、绿色', '答案：绿色'],
     ['红色', '不是绿色', '红色或绿色', '蓝色', '伞不是绿色的']),
    (PILLS, 'A',
     ['vitamin C', 'A', 'It is vitamin C.', 'The answer is vitamin C', '(A) vitamin C'],
     ['C', 'vitamin A', 'zinc']),
    (BLANK, 'C', ['n/a', 'N/A', 'n/a.', 'The answer is N/A', 'C', '(C) n/a'], ['A', 'n or a', 'STOP']),
    (UMBRELLA, 'C',  # a letter within a name is no option
     ['Letter C', 'so C', 'A and B are wrong, leaving C', '1. C', 'most likely C', '# C', 'The umbrella matches C'],
     ['C++', 'c++', 'C#', 'Vitamin C', 'It is vitamin C', 'Vitamin C is good', 'The answer is vitamin C', 'Plan C', 'C major', '°C',
      '20 °C', '5 C', 'USB-C', 'vitamin C, so B']),
    ('', 'B',
     ['B', 'The answer is B.', '答案是B', '选B', "B because it's round"],
     ['A', 'The answer is A, not B']),
    ('What is on the desk?', 'red mug',
     ['red mug', 'A red mug', 'a red mug is on the desk', 'There is a red mug on the desk.',
      'It is a red mug', 'The answer is: a red mug.'],
     ['blue mug', 'mug', 'red mug and a pen', 'not a red mug', 'red', 'a red mug or a pen', 'no red mug']),
]
ROWS = [(reply, truth, question, right) for question, truth, *replies in CASES
        for group, right in zip(replies, (1, 0)) for reply in group]

@pytest.mark.parametrize("reply,truth,question,right", ROWS)
def test_a_careful_reader_agrees(reply, truth, question, right):
    assert accuracy(reply, truth, question) == right

WRAPS = ["{}", "**{}**", "({})", "`{}`", " {}\n", "{}.", r"\boxed{{{}}}", r"\text{{{}}}", r"$\boxed{{\text{{{}}}}}$",
         "The answer is {}", "The answer is **{}**.", "Answer: {}", "Final answer: {}", "答案：{}", "答案是{}。", "正解は{}です",
         "Based on the image, the answer is {}.", "I looked twice.\n\nAnswer: {}", "So the correct answer is: {}"]
QUESTIONS = [(UMBRELLA, ["A", "B", "C", "D"]), (UMBRELLA, ["red", "blue", "green", "yellow"]), (BUSES, ["4", "5", "0", "12"]),
             (DOG, ["yes", "no"]), ("", ["A", "B", "C"]), (LAMP, ["on", "off"])]

@st.composite
def two_answers(draw):
    "A question, two of its answers"
    question, answers = draw(st.sampled_from(QUESTIONS))
    return question, *draw(st.permutations(answers))[:2]

@given(two_answers(), st.sampled_from(WRAPS))
def test_a_wrap_changes_nothing(case, wrap):
    question, said, other = case
    assert accuracy(wrap.format(said), said, question) == 1
    assert accuracy(wrap.format(said), other, question) == 0

@given(two_answers(), st.sampled_from(WRAPS), st.sampled_from([" or ", "/", " and ", " or maybe "]))
def test_two_answers_are_none(case, wrap, between):
    question, said, other = case
    reply = wrap.format(said + between + other)
    assert accuracy(reply, said, question) == accuracy(reply, other, question) == 0

@given(two_answers(), st.sampled_from(["not {}", "It is not {}.", "The answer is not {}.", "I don't think it is {}", "{} is wrong"]))
def test_what_is_denied_is_not_said(case, denial):
    question, said, other = case
    assert accuracy(denial.format(said), said, question) == 0

@given(two_answers(), st.sampled_from(WRAPS[9:]), st.sampled_from(WRAPS[9:]),
       st.sampled_from(["\n", " Hm. ", " Wait, I need to correct this. "]))
def test_the_last_statement_counts(case, first, last, between):
    question, said, other = case
    reply = first.format(other) + between + last.format(said)
    assert accuracy(reply, said, question) == 1 and accuracy(reply, other, question) == 0

full_width = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}

@given(two_answers())
def test_full_width_forms_are_the_same(case):
    question, said, _ = case
    assert accuracy(said.translate(full_width), said, question) == 1

@settings(max_examples=200)
@given(st.lists(st.sampled_from("yes no not there is a dog cat the image , . ! or and B C not blue green umbrella answer : "
                                "答案 是 没有 4 5 about".split()), max_size=9))
def test_nothing_is_right_for_two_truths(words):
    reply = " ".join(words)
    for question, answers in QUESTIONS:
        assert sum(accuracy(reply, truth, question) for truth in answers) <= 1

@given(st.text(max_size=40))
def test_readers_take_any_text(reply):
    assert read_yes_no(reply, DOG) in ("yes", "no", None)
    assert picks(reply, read_options(UMBRELLA), UMBRELLA) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ") or not reply.isascii()
